// Light, dark, or as the system has it. Runs before the first paint, so that nothing flashes.
(() => {
  const CHOICES = ["auto", "light", "dark"];
  const KEY = "tokenmill-theme";
  let choice = "auto";
  try { choice = localStorage.getItem(KEY) ?? "auto"; } catch { /* a browser that keeps nothing for us */ }

  function apply() {
    if (choice === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
  }

  apply();
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => { button.textContent = `Theme: ${choice}`; };
    show();
    button.addEventListener("click", () => {
      choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
      try { localStorage.setItem(KEY, choice); } catch { /* as above */ }
      apply();
      show();
      document.dispatchEvent(new Event("themechange"));
    });
  });
})();
