"use strict";
/* Call the action of a key, unless the user is typing; `digit` gets 1 to 9, and keys in `mayRepeat` repeat while held
   down. */
function listenToKeys(actions, digit, mayRepeat) {
  document.addEventListener("keydown", (event) => {
    const slides = event.target.matches("input[type=range]");
    const types = !slides && event.target.matches("input, select, textarea, [contenteditable]");
    if (event.isComposing || types || document.querySelector("dialog[open]")) return;
    let key = event.key.toLowerCase();
    // Some keyboards need AltGr for the brackets, and AltGr counts as Ctrl and Alt.
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
