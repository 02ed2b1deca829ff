"use strict";
/* Call an action by its key, unless something is typed; `digit` is told 1 to 9, and keys in `mayRepeat` work while they
   are held down. */
function listenToKeys(actions, digit, mayRepeat) {
  document.addEventListener("keydown", (event) => {
    const slides = event.target.matches("input[type=range]");
    const types = !slides && event.target.matches("input, select, textarea, [contenteditable]");
    if (event.isComposing || types || document.querySelector("dialog[open]")) return;
    let key = event.key.toLowerCase();
    // On some keyboards the brackets are typed with AltGr, which counts as Ctrl and Alt.
    const typed = event.getModifierState("AltGraph") && "[]".includes(key);
    if ((event.ctrlKey || event.metaKey || event.altKey) && !typed) return;
    if (slides && key.startsWith("arrow")) return;
    if (!actions[key]) key = { BracketLeft: "[", BracketRight: "]" }[event.code] || key;
    const number = event.shiftKey ? null : /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
    if (!actions[key] && !number) return;
    event.preventDefault();
    if (event.repeat && !mayRepeat.includes(key)) return;
    if (actions[key]) actions[key]();
    else digit(Number(number[1]));
  });
}
