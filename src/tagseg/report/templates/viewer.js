"use strict";
(function () {
  const find = (id) => document.getElementById(id);
  const viewer = find("viewer");
  const stage = viewer.querySelector(".stage");
  const pictures = Array.from(document.querySelectorAll("svg.picture"));
  let current = 0;
  function show(index) {
    current = (index + pictures.length) % pictures.length;
    const picture = pictures[current].cloneNode(true);
    const size = pictures[current].viewBox.baseVal;
    picture.style.aspectRatio = size.width + " / " + size.height;
    stage.replaceChildren(picture);
    find("viewer-text").textContent = pictures[current].getAttribute("aria-label");
  }
  pictures.forEach((picture, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "zoom";
    button.setAttribute("aria-label", "Enlarge: " + picture.getAttribute("aria-label"));
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", () => { show(index); viewer.showModal(); });
  });
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer || event.target.closest("button")) viewer.close();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") show(current + 1);
    if (event.key === "ArrowLeft") show(current - 1);
  });
  viewer.addEventListener("close", () => pictures[current].parentElement.focus());

  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details.settings").forEach((details) => { details.open = true; });
  });
})();
