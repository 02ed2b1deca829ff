"use strict";
/* The parts of the review page; names are always inserted as text. */
function reviewParts() {
  const find = (id) => document.getElementById(id);
  function make(tag, className, text = "") {
    const element = document.createElement(tag);
    element.className = className;
    element.textContent = text;
    return element;
  }
  const expectedIou = (score) => score === null || score === undefined ? "" : score.toFixed(2);
  function entry(button, action) {
    const line = make("li", "");
    button.type = "button";
    button.addEventListener("click", action);
    line.append(button);
    return line;
  }
  function thumbnail(item, action) {
    const [button, image] = [make("button", ""), make("img", "")];
    image.loading = "lazy";
    image.alt = "";
    image.src = "thumb?" + new URLSearchParams({ id: item.id });
    button.title = item.id;
    button.append(image, make("span", "label", item.id));
    return entry(button, action);
  }
  function classSwitch(name, colour, number, on, score, action) {
    const [button, key, swatch] = [make("button", ""), make("span", ""), make("span", "swatch")];
    swatch.style.setProperty("--c", colour);
    if (number < 10) key.append(make("kbd", "", String(number)));
    button.setAttribute("aria-pressed", String(on));
    const value = make("span", "value", expectedIou(score));
    value.title = "expected IoU";
    button.append(key, swatch, make("span", "label", name), value);
    return entry(button, action);
  }
  function counts(of) {
    for (const button of document.querySelectorAll("[data-verdict]")) {
      button.querySelector(".count").textContent = of[button.dataset.verdict].toLocaleString("en");
    }
    const reviewed = of.all - of.open;
    find("done").max = Math.max(of.all, 1);
    find("done").value = reviewed;
    find("done-text").textContent = reviewed.toLocaleString("en") + " of " + of.all.toLocaleString("en") + " reviewed";
  }
  return { make, expectedIou, thumbnail, classSwitch, counts };
}
