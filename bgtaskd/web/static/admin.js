// SPDX-License-Identifier: LGPL-2.1-or-later
// The administrator's page: times in the reader's zone, what is live stays so, and a chart. Works without, too.

function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.textContent = new Date(time.dateTime).toLocaleString();
  }
}

/** The part of the page that changes, fetched anew while somebody looks at it and has nothing in hand there. */
async function refresh(live) {
  if (document.hidden || live.contains(document.activeElement) || String(getSelection())) return;
  const response = await fetch(location.href, { cache: "no-store" });
  if (response.status === 401) location.reload();
  if (!response.ok) return;
  const parsed = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = parsed.getElementById("live");
  if (!fresh) return;
  localise(fresh);
  live.replaceChildren(...fresh.childNodes);
}

const live = document.getElementById("live");
if (live?.dataset.every) {
  const again = () => refresh(live).catch(() => {}).finally(() => setTimeout(again, Number(live.dataset.every)));
  setTimeout(again, Number(live.dataset.every));
}
localise(document);

const POINTS = 150;
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}

/** One line over time, as high as its own highest value. */
class Chart {
  constructor(parent, title, show) {
    this.show = show;
    this.points = [];
    this.svg = make("svg", { viewBox: "0 0 300 60", preserveAspectRatio: "none", role: "img" });
    this.line = make("polyline", { class: "line", points: "" });
    this.svg.append(this.line);
    this.title = document.createElement("figcaption");
    this.name = title;
    const figure = document.createElement("figure");
    figure.append(this.title, this.svg);
    parent.append(figure);
    this.add(null);
  }

  add(value) {
    if (value !== null) this.points.push(value);
    this.points = this.points.slice(-POINTS);
    const highest = Math.max(...this.points, 1);
    const last = this.points.at(-1);
    const words = last === undefined ? "not known" : `${this.show(last)}, at most ${this.show(highest)}`;
    this.title.textContent = `${this.name}: ${words}`;
    this.svg.setAttribute("aria-label", this.title.textContent);
    const step = 300 / Math.max(this.points.length - 1, 10);
    const places = this.points.map((one, at) => `${(at * step).toFixed(1)},${(58 - (one / highest) * 54).toFixed(1)}`);
    this.line.setAttribute("points", places.join(" "));
  }
}

const chart = document.getElementById("chart");
if (chart && !("ended" in chart.dataset)) {
  const mebi = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  const memory = new Chart(chart, "Memory", mebi);
  const processor = new Chart(chart, "Processor", (percent) => `${Math.round(percent)} %`);
  let before = null;
  const tick = async () => {
    try {
      const response = await fetch(chart.dataset.from, { cache: "no-store" });
      const said = await response.json();
      const now = performance.now();
      if (said.ended) return;
      if (said.memory !== null) memory.add(said.memory);
      if (before && said.cpu_usec !== null && before.usec !== null) {
        processor.add(Math.max(0, (said.cpu_usec - before.usec) / 10 / (now - before.at)));
      }
      before = { usec: said.cpu_usec, at: now };
    } catch {
      // later perhaps
    }
    setTimeout(tick, 2000);
  };
  tick();
} else if (chart) {
  chart.textContent = "It has ended: what it used is above.";
}
