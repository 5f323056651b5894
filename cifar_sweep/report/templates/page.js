"use strict";
{
  const $ = (id) => document.getElementById(id);
  const content = (id) => JSON.parse($(id).textContent);

  // Light and dark

  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { $("theme").textContent = isDark() ? "Light" : "Dark"; };
  $("theme").addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();

  // The figures: drawn when they come near the screen, one at a time. Plotly is a text until the first one does, so
  // that its parsing does not stand before the page.

  const library = () => {
    const script = document.createElement("script");
    script.textContent = $("plotly").textContent;
    document.head.append(script);
    $("plotly").remove();
  };

  const draw = (place) => {
    if (place.dataset.drawn) return;
    place.dataset.drawn = "yes";
    if (!window.Plotly) library();
    const figure = content(`figure-${place.id}`);
    // A finger on a figure scrolls the page; a mouse zooms in, and out with a double click.
    const layout = { ...figure.layout, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom" };
    Plotly.newPlot(place, figure.data, layout, { responsive: true, displayModeBar: false });
    place.on("plotly_click", (event) => {
      const known = event.points[0]?.customdata;
      const number = Array.isArray(known) ? known[0] : known;
      if (typeof number === "number") document.dispatchEvent(new CustomEvent("trial", { detail: number }));
    });
  };

  const places = [...document.querySelectorAll(".plot")];
  const waiting = [];
  const next = () => {
    draw(waiting[0]);
    waiting.shift();
    if (waiting.length) setTimeout(next);
  };
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      watch.unobserve(entry.target);
      waiting.push(entry.target);
      if (waiting.length === 1) setTimeout(next);
    }
  }, { rootMargin: "400px" });
  requestAnimationFrame(() => setTimeout(() => places.forEach((place) => watch.observe(place))));
  addEventListener("beforeprint", () => places.forEach(draw));
}
