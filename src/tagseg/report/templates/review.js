"use strict";
(function () {
  const find = (id) => document.getElementById(id);
  const about = JSON.parse(find("review").dataset.about);
  const layers = find("layers");
  const WAIT = 150; // ms without a change of the threshold before its mask is requested

  let filter = { verdict: "open", class: 0 };
  let items = []; // the part of the list that is shown
  let current = null;
  const changes = []; // earlier states of images, the last change last

  find("review").style.setProperty("--void", about.void);
  find("network").hidden = !about.network;

  const draw = reviewParts();
  const server = reviewServer(tell, draw.counts, restore);
  const { picture, photoOf, maskOf, save } = server;

  async function list(values) {
    const found = await (await server.answer("list?" + new URLSearchParams({ ...filter, ...values }))).json();
    found.items.forEach((item) => Object.assign(item, server.unsaved.get(item.id)));
    draw.counts(found.counts);
    return found;
  }

  async function restore(id) {
    const item = [current, ...items].find((one) => one && one.id === id);
    if (!item) return;
    const found = await list({ verdict: "all", class: 0, from: item.place, count: 1 }).catch(() => null);
    if (found && found.items.length) Object.assign(item, found.items[0]);
    drawItem(item);
  }
  function tell(text, failed = false) {
    find("saved").textContent = text;
    find("saved").classList.toggle("failed", failed);
  }

  // --- drawing

  const classNames = (item) => item.tags.map((tag) => about.names[tag]).join(", ");

  function drawStrip(found) {
    items = found.items;
    find("strip").replaceChildren(...items.map((item) => draw.thumbnail(item, () => show(item))));
    const last = found.first + items.length;
    find("range").textContent = items.length ? (found.first + 1) + "–" + last + " of " + found.total.toLocaleString("en") : "none";
    find("earlier").disabled = found.first === 0;
    find("later").disabled = last >= found.total;
    items.forEach((item, index) => { item.where = (found.first + index + 1).toLocaleString("en") + " of " + found.total.toLocaleString("en"); });
    markStrip();
  }
  function markStrip() {
    [...find("strip").children].forEach((entry, index) => {
      const [item, button] = [items[index], entry.firstChild];
      const here = current !== null && item.id === current.id;
      button.className = item.verdict;
      button.setAttribute("aria-label", item.id + ", " + item.verdict);
      button.tabIndex = here || (index === 0 && !items.some((one) => current && one.id === current.id)) ? 0 : -1;
      button.toggleAttribute("aria-current", false);
      if (here) {
        button.setAttribute("aria-current", "true");
        reveal(entry);
      }
    });
  }
  function reveal(entry) { // in the list alone: the page stays where it is
    const [inner, outer] = [entry.getBoundingClientRect(), find("strip").getBoundingClientRect()];
    const x = Math.min(inner.left - outer.left, 0) + Math.max(inner.right - outer.right, 0);
    find("strip").scrollBy(x, Math.min(inner.top - outer.top, 0) + Math.max(inner.bottom - outer.bottom, 0));
  }
  function drawItem(item) {
    if (item && item === current) {
      find("name").textContent = item.id;
      find("verdict").textContent = item.verdict;
      find("verdict").className = "verdict " + item.verdict;
      find("score").textContent = item.score === null ? "" : "expected IoU " + draw.expectedIou(item.score);
      find("reason").textContent = item.reason;
      find("where").textContent = item.where || "";
      for (const button of document.querySelectorAll("[data-set]")) {
        button.setAttribute("aria-pressed", String(button.dataset.set === item.verdict));
      }
      find("threshold").value = Math.round(100 * item.threshold);
      find("threshold-text").textContent = item.threshold.toFixed(2);
      drawClasses(item);
      fix.choices(item);
    }
    find("undo").disabled = !changes.length;
    find("network").setAttribute("aria-pressed", String(Boolean(item && item.network)));
    markStrip();
  }
  function drawClasses(item) {
    const focused = [...find("classes").querySelectorAll("button")].indexOf(document.activeElement);
    find("classes").replaceChildren(...item.tags.map((tag, index) => {
      const on = !item.off.includes(tag);
      return draw.classSwitch(about.names[tag], about.colours[tag], index + 1, on, item.scores[tag], () => switchClass(tag));
    }));
    if (focused >= 0) find("classes").querySelectorAll("button")[focused]?.focus();
  }

  let drawn = 0; // only the pictures requested last are shown
  async function drawPictures() {
    const [mine, item] = [++drawn, current];
    busy(true);
    find("trouble").hidden = true;
    try {
      const photo = await picture(photoOf(item));
      if (mine !== drawn) return;
      photo.alt = "Photo " + item.id;
      if (!layers.contains(photo)) {
        layers.style.setProperty("--shape", item.width / item.height);
        layers.replaceChildren(photo);
      }
      layers.classList.remove("old");
      const mask = await picture(maskOf(item));
      if (mine !== drawn) return;
      mask.className = "mask";
      mask.alt = "Mask: " + classNames({ tags: item.tags.filter((tag) => !item.off.includes(tag)) });
      layers.replaceChildren(photo, mask);
      layers.dataset.shown = maskOf(item);
    } catch (error) {
      if (mine !== drawn) return;
      find("trouble").textContent = error.message;
      find("trouble").hidden = false;
    }
    fix.redraw();
    busy(false);
  }
  function busy(on) {
    layers.setAttribute("aria-busy", String(on));
    find("busy").hidden = !on;
  }

  // --- moving between images

  function show(item) {
    settle();
    if (!current || item.id !== current.id) {
      layers.classList.add("old");
      zoom.reset();
    }
    current = item;
    drawItem(item);
    const score = draw.expectedIou(item.score);
    find("current").textContent = [item.id, item.where, classNames(item), score && "expected IoU " + score, item.verdict].filter(Boolean).join(", ");
    drawPictures().then(preload);
  }
  function showNothing(text) {
    current = null;
    drawn++;
    layers.replaceChildren();
    busy(false);
    for (const id of ["verdict", "score", "reason", "where"]) find(id).textContent = "";
    find("name").textContent = find("current").textContent = text;
    find("classes").replaceChildren();
    drawItem(null);
  }
  const wanted = () => (filter.verdict === "all" ? "open" : filter.verdict);
  const inList = () => items.findIndex((item) => current && item.id === current.id); // -1 after undoing a change elsewhere
  const following = () => (inList() < 0 ? [] : items.slice(inList() + 1));
  function preload() {
    const next = following().find((item) => item.verdict === wanted()) || following()[0];
    if (next) Promise.all([picture(photoOf(next)), picture(maskOf(next))]).catch(() => {});
  }
  let moving = false;
  async function move(task) {
    if (moving) return;
    moving = true;
    try {
      await task();
    } catch (error) {
      find("trouble").textContent = error.message;
      find("trouble").hidden = false;
    }
    moving = false;
  }
  const step = (forward) => move(async () => {
    if (!current) return;
    const near = items[inList() + (forward ? 1 : -1)];
    if (inList() >= 0 && near) return show(near);
    const found = await list(forward ? { from: current.place + 1 } : { until: current.place });
    if (!found.items.length) return tell(forward ? "This is the last image." : "This is the first image.");
    drawStrip(found);
    show(items.at(forward ? 0 : -1));
  });
  const goOn = () => move(async () => {
    const near = following().find((item) => item.verdict === wanted());
    if (near) return show(near);
    await server.sent();
    for (const from of [current.place + 1, 0]) {
      const next = (await list({ verdict: wanted(), from, count: 1 })).items[0];
      if (next) {
        drawStrip(await list({ from: next.place }));
        return show(items[0]);
      }
    }
    if (filter.verdict === "all") return tell("No open images are left.");
    drawStrip(await list({}));
    showNothing("No " + wanted() + " images" + (filter.class ? " of this class" : "") + " are left.");
  });
  const open = (values) => move(async () => {
    settle();
    const found = await list(values);
    drawStrip(found);
    if (items.length) show(items[0]);
    else showNothing("No " + (filter.verdict === "all" ? "" : filter.verdict + " ") + "images" + (filter.class ? " of this class" : "") + ".");
  });

  // --- deciding

  function change(item, values) {
    changes.push({ item, before: { verdict: item.verdict, off: item.off, threshold: item.threshold, network: item.network } });
    if (changes.length > 200) changes.shift();
    Object.assign(item, values);
    drawItem(item);
  }
  function decide(verdict) {
    if (!current || moving) return;
    settle(false);
    const item = current;
    const again = item.verdict === verdict;
    change(item, { verdict: again ? "open" : verdict });
    save(item);
    if (again) drawPictures();
    else goOn();
  }
  let asked = ""; // the share for which the next press of the button accepts
  const acceptAll = () => move(async () => {
    settle();
    await server.sent();
    const percent = find("above").value;
    if (percent === "" || !find("above").checkValidity()) return tell("Give a number from 0 to 100.", true);
    if (asked !== percent) { // many decisions at once are confirmed, by a second press
      asked = percent;
      return tell("Press Accept again to accept all open masks with an expected IoU of " + percent + " % or more.");
    }
    asked = "";
    const body = JSON.stringify({ above: Number(percent) / 100 });
    const done = await (await server.answer("accept", { method: "POST", headers: { "content-type": "application/json" }, body })).json();
    draw.counts(done.counts);
    drawStrip(await list({}));
    if (items.length) show(items[0]);
    else showNothing("No " + wanted() + " images are left.");
    tell("Accepted " + done.accepted + " masks.");
  });
  function takeNetwork() { // shows its mask; accepting keeps what is shown
    if (!current || moving || !about.network) return;
    settle();
    const [item, before] = [current, current.verdict];
    change(item, { network: !item.network, verdict: opened(item) });
    if (item.verdict !== before) save(item);
    tell(item.network ? "The network's mask. Accept keeps it." : "The mask of the memory bank.");
    drawPictures();
  }
  const opened = (item) => (item.verdict === "flagged" ? "flagged" : "open"); // other verdicts hold only for the old mask
  function switchClass(tag) {
    if (!current || tag === undefined) return;
    settle(false);
    const off = current.off.includes(tag) ? current.off.filter((one) => one !== tag) : [...current.off, tag].sort((a, b) => a - b);
    change(current, { off, verdict: opened(current) });
    save(current);
    drawPictures();
  }
  let moved = null; // the image whose threshold is moving, and the timer
  function moveThreshold(percent) {
    if (!current || !(percent >= 5 && percent <= 95)) return;
    const values = { threshold: percent / 100, verdict: opened(current), network: false }; // which has no threshold
    if (moved) {
      clearTimeout(moved.timer);
      Object.assign(current, values);
      drawItem(current);
    } else change(current, values);
    busy(true);
    moved = { item: current, timer: setTimeout(() => { settle(); drawPictures(); }, WAIT) };
  }
  function settle(store = true) {
    if (!moved) return;
    clearTimeout(moved.timer);
    if (store) save(moved.item);
    moved = null;
  }
  const undo = () => move(async () => {
    settle();
    const last = changes.pop();
    if (!last) return;
    const item = items.find((one) => one.id === last.item.id) || last.item;
    if (last.part) return fix.remove(item, last.part);
    Object.assign(item, last.before);
    save(item);
    show(item);
  });

  // --- fixing by hand

  const fix = fixTools(layers, server, about, tell, () => (moving ? null : current), (item, part) => {
    item.network = false; // what is fixed by hand is the bank's mask
    if (part) {
      changes.push({ item, part });
      if (["accepted", "rejected"].includes(item.verdict)) { // they hold only for the old mask
        Object.assign(item, { verdict: "open" });
        save(item);
      }
    }
    drawItem(item);
    if (item === current) drawPictures();
    else show(item);
  });

  const zoom = zoomTools(layers, () => fix.redraw());

  // --- keys and buttons

  const keys = {
    c: () => fix.take("click"), b: () => fix.take("brush"), e: () => fix.take("eraser"), v: () => fix.take("look"),
    a: () => decide("accepted"), r: () => decide("rejected"), f: () => decide("flagged"), z: undo, n: takeNetwork,
    j: () => step(true), arrowright: () => step(true), arrowdown: () => step(true),
    k: () => step(false), arrowleft: () => step(false), arrowup: () => step(false),
    "[": () => moveThreshold(Number(find("threshold").value) - 5), "]": () => moveThreshold(Number(find("threshold").value) + 5),
    "+": zoom.near, "=": zoom.near, "-": zoom.far,
    h: () => layers.classList.add("bare"), "?": () => find("help").showModal(),
  };
  const mayRepeat = ["+", "=", "-", "j", "k", "[", "]", "arrowright", "arrowdown", "arrowleft", "arrowup"];
  listenToKeys(keys, (number) => { if (current) switchClass(current.tags[number - 1]); }, mayRepeat);
  const bare = () => layers.classList.remove("bare");
  document.addEventListener("keyup", (event) => { if (event.key.toLowerCase() === "h") bare(); });
  window.addEventListener("blur", bare);

  for (const button of document.querySelectorAll("[data-set]")) button.addEventListener("click", () => decide(button.dataset.set));
  const clicks = { undo, previous: () => step(false), next: () => step(true), accept: acceptAll, network: takeNetwork, keys: () => find("help").showModal() };
  clicks.earlier = () => open({ until: items[0].place });
  clicks.later = () => open({ from: items.at(-1).place + 1 });
  for (const [id, action] of Object.entries(clicks)) find(id).addEventListener("click", action);
  find("threshold").addEventListener("input", (event) => moveThreshold(Number(event.target.value)));
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.addEventListener("click", () => {
      filter = { ...filter, verdict: button.dataset.verdict };
      for (const other of document.querySelectorAll("[data-verdict]")) other.setAttribute("aria-pressed", String(other === button));
      open({});
    });
  }
  let byMouse = false;
  find("class").addEventListener("pointerdown", () => { byMouse = true; });
  find("class").addEventListener("keydown", () => { byMouse = false; });
  find("class").addEventListener("change", (event) => {
    filter = { ...filter, class: Number(event.target.value) };
    if (byMouse) event.target.blur(); // otherwise the next key would choose a class instead of deciding
    open({});
  });
  open({});
})();
