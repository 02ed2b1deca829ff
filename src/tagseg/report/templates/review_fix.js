"use strict";
/* Click, brush and eraser on the review page. `current` returns the image on show, `done(item, number)` is called after a
   click or stroke was stored (or removed, without a number). */
function fixTools(layers, server, about, tell, current, done) {
  const find = (id) => document.getElementById(id);
  const STEP = 0.02; // how far an arrow key moves the mark, as a share of the image
  const MOST = 400; // points of a stroke
  let tool = "look";
  let mark = [0.5, 0.5];
  let stroke = null; // points of the stroke that is being drawn
  let sending = false;
  let chosenFor = ""; // the image that the class was chosen for
  const canvas = document.createElement("canvas");
  canvas.className = "strokes";
  layers.dataset.tool = tool;

  function take(name) {
    tool = layers.dataset.tool = name;
    for (const button of document.querySelectorAll("[data-tool]")) {
      if (button.tagName === "BUTTON") button.setAttribute("aria-pressed", String(button.dataset.tool === name));
    }
    layers.tabIndex = name === "look" ? -1 : 0;
    layers.setAttribute("role", name === "look" ? "presentation" : "application");
    layers.setAttribute("aria-label", name === "look" ? "" : "Image, " + name + " tool: arrow keys move the mark, Enter sets it");
    if (name !== "look") layers.focus();
    redraw();
  }
  function choices(item) {
    const [list, before] = [find("paint"), find("paint").value];
    const option = (id) => Object.assign(document.createElement("option"), { value: id, textContent: about.names[id] });
    const others = about.names.map((name, id) => id).filter((id) => id && !item.tags.includes(id));
    const missing = Object.assign(document.createElement("optgroup"), { label: "Missing tags" });
    missing.append(...others.map(option));
    list.replaceChildren(...[...item.tags, 0].map(option), ...(others.length ? [missing] : []));
    // A class is kept from image to image, a missing tag is not: it is rare, and of one image.
    const kept = before !== "" && (item.id === chosenFor || [...item.tags, 0].includes(Number(before)));
    list.value = kept ? before : item.tags[0] ?? 0;
    chosenFor = item.id;
  }
  const chosen = () => (tool === "eraser" ? 0 : Number(find("paint").value));
  const radius = () => Number(find("radius").value) / 200;

  function redraw() {
    if (!layers.contains(canvas) && layers.firstChild) layers.append(canvas);
    const box = layers.getBoundingClientRect();
    [canvas.width, canvas.height] = [Math.max(Math.round(box.width), 1), Math.max(Math.round(box.height), 1)];
    if (tool === "look") return;
    const pen = canvas.getContext("2d");
    const at = ([x, y]) => [x * canvas.width, y * canvas.height];
    const wide = tool === "click" ? 6 : radius() * Math.max(canvas.width, canvas.height);
    pen.strokeStyle = pen.fillStyle = chosen() ? about.colours[chosen()] : "rgb(255 255 255 / 60%)";
    pen.lineWidth = 2 * wide;
    pen.lineCap = pen.lineJoin = "round";
    if (stroke) {
      pen.beginPath();
      pen.moveTo(...at(stroke[0]));
      for (const point of stroke) pen.lineTo(...at(point));
      pen.stroke();
    }
    pen.lineWidth = 2;
    pen.strokeStyle = "white";
    pen.beginPath();
    pen.arc(...at(mark), wide, 0, 7);
    pen.stroke();
  }

  async function send(path, values) {
    sending = true;
    for (let wait = 500; ;) {
      try {
        const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(values) };
        return await (await server.answer(path, options)).json();
      } catch (error) {
        // A broken server may recover; what was refused always will be.
        if (error.status < 500 && error.status !== 403) throw error;
        tell("Not saved yet, retrying. " + error.message, true);
        await new Promise((resume) => setTimeout(resume, wait));
        wait = Math.min(2 * wait, 8000);
      }
    }
  }
  async function store(points) {
    const item = current();
    if (!item || sending) return;
    const kind = tool === "click" ? "click" : "brush";
    tell("Saving …");
    try {
      const told = await send("fix", { id: item.id, kind, class: chosen(), points, radius: radius() });
      Object.assign(item, { parts: told.item.parts, tags: told.item.tags });
      tell("Saved: " + item.id + ", " + tool + " " + about.names[chosen()]);
      done(item, told.number);
    } catch (error) {
      tell("Not saved: " + error.message, true);
    }
    sending = false;
  }
  async function remove(item, number) {
    try {
      const told = await send("unfix", { id: item.id, number });
      Object.assign(item, { parts: told.item.parts, tags: told.item.tags });
      tell("Undone: " + item.id);
      done(item);
    } catch (error) {
      tell(error.message, true);
    }
    sending = false;
  }

  const share = (value) => Math.min(Math.max(Math.round(10000 * value) / 10000, 0), 1);
  function place(event) {
    const box = layers.getBoundingClientRect();
    return [share((event.clientX - box.left) / box.width), share((event.clientY - box.top) / box.height)];
  }
  layers.addEventListener("pointerdown", (event) => {
    if (tool === "look" || event.button) return;
    event.preventDefault();
    layers.focus();
    mark = place(event);
    if (tool === "click") return store([mark]);
    layers.setPointerCapture(event.pointerId);
    stroke = [mark];
    redraw();
  });
  layers.addEventListener("pointermove", (event) => {
    if (tool === "look") return;
    mark = place(event);
    if (stroke) {
      const [x, y] = stroke.at(-1);
      if (Math.hypot(mark[0] - x, mark[1] - y) > radius() / 3 && stroke.length < MOST) stroke.push(mark);
    }
    redraw();
  });
  layers.addEventListener("pointerup", () => {
    if (!stroke) return;
    const points = stroke;
    stroke = null;
    store(points);
  });
  layers.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    if (tool === "look" || !(moves[event.key] || event.key === "Enter")) return;
    event.preventDefault();
    event.stopPropagation(); // otherwise the page goes to another image
    if (event.key === "Enter") return store([mark]);
    mark = mark.map((value, axis) => share(value + moves[event.key][axis]));
    find("mark").textContent = Math.round(100 * mark[0]) + " % from the left, " + Math.round(100 * mark[1]) + " % from the top";
    redraw();
  });
  for (const button of document.querySelectorAll("button[data-tool]")) button.addEventListener("click", () => take(button.dataset.tool));
  find("radius").addEventListener("input", redraw);
  return { take, choices, redraw, remove };
}
