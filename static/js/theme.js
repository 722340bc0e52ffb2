// Runs before the first paint: the person's theme and the folded sidebar, from this browser's storage.
(() => {
  const stored = (name) => {
    try {
      return localStorage.getItem(name);
    } catch {
      return null; // storage is switched off
    }
  };
  const theme = stored("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  if (stored("sidebar") === "rail") document.documentElement.dataset.sidebar = "rail";
})();
