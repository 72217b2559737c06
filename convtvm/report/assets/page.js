// Draws every picture from the JSON beside it. Colours are CSS variables, so themes need no redraw.
const json = (id) => JSON.parse(document.getElementById(id).textContent);
const config = json("config");
const places = [...document.querySelectorAll("[data-chart]")];
const options = {
  renderer: "svg",
  actions: false,
  ast: true, // no code from texts: the page's policy forbids it
  defaultStyle: false,
  logLevel: 1, // errors; Vega-Lite warns of a chart that sets its own height
};
// Legends do not break their lines themselves, and names of libraries may be long.
const changed = (part, changes) => ({ [part]: { ...config[part], ...changes } });
const narrow = {
  ...config,
  ...changed("legend", { columns: 2, labelLimit: 78 }),
  ...changed("axis", { labelLimit: 130 }),
};
const suited = (width) => (width < 500 ? narrow : config);
let drawn = 0;
for (const place of places) {
  try {
    const spec = json(place.dataset.chart);
    await window.vegaEmbed(place, spec, { ...options, config: suited(place.clientWidth) });
    drawn += 1;
  } catch (error) {
    place.classList.add("failed");
    place.textContent = `This picture cannot be drawn: ${error.message}`;
    console.error(place.dataset.chart, error);
  }
}
document.documentElement.dataset.drawn = `${drawn} of ${places.length}`;
// Vega-Lite looks at its place's width when the window's changes, and paper has another one.
const fit = () => window.dispatchEvent(new Event("resize"));
window.addEventListener("beforeprint", fit);
window.addEventListener("afterprint", fit);
