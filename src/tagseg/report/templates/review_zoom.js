"use strict";
/* Zoom and pan of the image on the review page: the wheel, + and -, and dragging while no tool is taken. `changed` is
   called when the image on the screen has another size. */
function zoomTools(layers, changed) {
  const MOST = 12; // times
  let [scale, x, y] = [1, 0, 0]; // the place of the upper left corner, in pixels of the page
  let drag = null; // where the pointer was last

  function apply() {
    x = Math.min(0, Math.max(x, layers.offsetWidth * (1 - scale)));
    y = Math.min(0, Math.max(y, layers.offsetHeight * (1 - scale)));
    layers.style.transform = scale === 1 ? "" : "translate(" + x + "px, " + y + "px) scale(" + scale + ")";
    layers.dataset.zoom = scale.toFixed(2);
    changed();
  }
  function zoom(factor, clientX, clientY) {
    const box = layers.getBoundingClientRect();
    const before = scale;
    scale = Math.min(Math.max(scale * factor, 1), MOST);
    // The point under the pointer stays there; without a pointer, that is the middle.
    const [left, top] = [clientX === undefined ? layers.offsetWidth / 2 - x : clientX - box.left, clientY === undefined ? layers.offsetHeight / 2 - y : clientY - box.top];
    x -= left * (scale / before - 1);
    y -= top * (scale / before - 1);
    apply();
  }
  function reset() {
    [scale, x, y] = [1, 0, 0];
    apply();
  }

  layers.addEventListener("wheel", (event) => {
    if (scale === 1 && event.deltaY > 0) return; // the page scrolls
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
  }, { passive: false });
  layers.addEventListener("pointerdown", (event) => {
    if (scale === 1 || layers.dataset.tool !== "look" || event.button) return;
    drag = [event.clientX, event.clientY];
    layers.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  layers.addEventListener("pointermove", (event) => {
    if (!drag) return;
    x += event.clientX - drag[0];
    y += event.clientY - drag[1];
    drag = [event.clientX, event.clientY];
    apply();
  });
  for (const name of ["pointerup", "pointercancel"]) layers.addEventListener(name, () => { drag = null; });

  return { near: () => zoom(1.5), far: () => zoom(1 / 1.5), reset };
}
