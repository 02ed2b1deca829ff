"use strict";
(function () {
  const find = (id) => document.getElementById(id);
  const about = JSON.parse(find("teach").dataset.about);
  const draw = reviewParts();
  const POLL = 250; // ms between two looks at what an answer changed

  let question = null;
  let names = []; // class ids in the order of their keys
  let seen = -1; // the version of the masks that are shown
  const mine = []; // numbers of the answers that this page gave, the last one last
  let sending = false;

  async function answer(path, values) {
    const options = values && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(values) };
    let response;
    try {
      response = await fetch(path, options);
    } catch {
      throw new Error("The server does not answer. Is tagseg teach still running?");
    }
    const told = await response.json().catch(() => ({}));
    if (response.ok) return told;
    throw Object.assign(new Error(told.error || "The server failed (" + response.status + ")."), { status: response.status });
  }
  const tag = () => Number(find("tag").value);
  function tell(text, failed = false) {
    find("saved").textContent = text;
    find("saved").classList.toggle("failed", failed);
  }

  // --- drawing

  const percent = (share) => Math.round(100 * share) + " %";
  function drawState(state) {
    find("count").textContent = state.count.toLocaleString("en") + " answers, " + state.left.toLocaleString("en") + " clusters to name";
    find("news").textContent = state.learned ? state.news : "Looking at all images …";
    drawAnswers(state.answers);
    const changed = (state.question && state.question.key) !== (question && question.key);
    if (changed || find("name").textContent === "Loading …") drawQuestion(state.question);
    if (changed || state.version !== seen) drawMasks(state);
    seen = state.version;
    find("undo").disabled = !mine.length;
    if (!state.learned) setTimeout(() => look().catch(() => {}), POLL);
  }
  function drawQuestion(asked) {
    question = asked;
    find("crops").replaceChildren();
    for (const button of document.querySelectorAll("[data-meaning]")) button.disabled = !asked;
    if (!asked) {
      find("name").textContent = "Every cluster is named.";
      find("touches").textContent = find("expected").textContent = "";
      find("names").replaceChildren();
      return;
    }
    find("name").textContent = "In images of " + about.names[asked.tag] + ": what is outlined?";
    find("touches").textContent = asked.cells.toLocaleString("en") + " cells of " + asked.images.toLocaleString("en") + " images";
    find("expected").textContent = "Now: " + asked.expected.map(([entry, share]) => about.names[entry] + " " + percent(share)).join(", ");
    find("crops").append(...asked.crops.map((id, number) => {
      const [line, image] = [draw.make("li", ""), draw.make("img", "")];
      image.alt = "Example " + (number + 1) + ", image " + id;
      image.title = id;
      image.src = "crop?" + new URLSearchParams({ key: asked.key, number });
      line.append(image);
      return line;
    }));
    const likely = asked.expected.map(([entry]) => entry).filter((entry) => entry && entry !== asked.tag);
    const rest = about.names.map((_, entry) => entry).filter((entry) => entry && entry !== asked.tag && !likely.includes(entry));
    names = [asked.tag, ...likely, ...rest];
    find("names").replaceChildren(...names.map((entry, index) => {
      const [line, button, key, swatch] = [draw.make("li", ""), draw.make("button", ""), draw.make("span", ""), draw.make("span", "swatch")];
      swatch.style.setProperty("--c", about.colours[entry]);
      if (index < 9) key.append(draw.make("kbd", "", String(index + 1)));
      button.type = "button";
      button.append(key, swatch, draw.make("span", "label", about.names[entry]));
      button.addEventListener("click", () => say("class", entry));
      line.append(button);
      return line;
    }));
  }
  async function drawMasks(state) {
    const list = find("masks");
    const ids = state.question ? state.question.masks : [];
    list.setAttribute("aria-busy", "true");
    list.dataset.version = "";
    const lines = ids.map((id) => {
      const [line, pair, photo, mask] = [draw.make("li", ""), draw.make("div", "pair"), draw.make("img", ""), draw.make("img", "")];
      photo.alt = "Photo " + id;
      mask.alt = "Mask of " + id;
      photo.src = "photo?" + new URLSearchParams({ id });
      mask.src = "mask?" + new URLSearchParams({ id, version: state.version });
      pair.append(photo, mask);
      line.append(pair, draw.make("span", "label", id));
      return line;
    });
    await Promise.all(lines.flatMap((line) => [...line.querySelectorAll("img")]).map((image) => image.decode().catch(() => {})));
    if (state.version !== seen || (state.question && question && state.question.key !== question.key)) return;
    list.replaceChildren(...lines);
    list.setAttribute("aria-busy", "false");
    list.dataset.version = String(state.version);
  }
  function drawAnswers(given) {
    find("answers").replaceChildren(...given.map(([number, text]) => {
      const [line, button] = [draw.make("li", "", text + " "), draw.make("button", "", "remove")];
      line.value = number;
      button.type = "button";
      button.setAttribute("aria-label", "Remove answer " + number + ": " + text);
      button.addEventListener("click", () => remove(number));
      line.append(button);
      return line;
    }));
  }

  // --- answering

  async function look() {
    try {
      drawState(await answer("state?" + new URLSearchParams({ tag: tag() })));
      find("trouble").hidden = true;
    } catch (error) {
      find("trouble").textContent = error.message;
      find("trouble").hidden = false;
    }
  }
  async function send(path, values, done) {
    if (sending) return;
    sending = true;
    for (let wait = 500; ;) {
      try {
        const state = await answer(path, values);
        done(state);
        drawState(state);
        break;
      } catch (error) {
        // A broken server may recover; an answer that was refused always will be.
        if (error.status < 500 && error.status !== 403) {
          tell("Not saved. " + error.message, true);
          await look();
          break;
        }
        tell("Not saved yet, retrying. " + error.message, true);
        await new Promise((resume) => setTimeout(resume, wait));
        wait = Math.min(2 * wait, 8000);
      }
    }
    sending = false;
  }
  function say(meaning, entry = 0) {
    if (!question || sending || (meaning === "class" && entry === undefined)) return;
    const said = meaning === "class" ? about.names[entry] : meaning;
    send("answer", { key: question.key, meaning, class: entry, tag: tag() }, (state) => {
      mine.push(state.number);
      tell("Saved: " + said);
    });
  }
  function remove(number) {
    send("undo", { number, tag: tag() }, () => {
      if (mine.includes(number)) mine.splice(mine.indexOf(number), 1);
      tell("Removed answer " + number);
    });
  }
  const undo = () => { if (mine.length) remove(mine.at(-1)); };
  window.addEventListener("beforeunload", (event) => { if (sending) event.preventDefault(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });

  listenToKeys({
    b: () => say("background"), m: () => say("mixed"), s: () => say("skip"), z: undo, "?": () => find("help").showModal(),
  }, (number) => say("class", names[number - 1]), []);
  for (const button of document.querySelectorAll("[data-meaning]")) button.addEventListener("click", () => say(button.dataset.meaning));
  find("undo").addEventListener("click", undo);
  find("keys").addEventListener("click", () => find("help").showModal());
  find("tag").addEventListener("change", look);
  look();
})();
