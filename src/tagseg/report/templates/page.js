"use strict";
(function () {
  const root = document.documentElement;
  const find = (id) => document.getElementById(id);

  const theme = find("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.setAttribute("aria-label", "Switch between light and dark");
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  system.addEventListener("change", nameTheme);
  nameTheme();

  const opacity = find("opacity");
  if (opacity) {
    find("slider").hidden = false;
    const show = () => root.style.setProperty("--overlay", opacity.value / 100);
    opacity.addEventListener("input", show);
    show();
  }
})();
