// SPDX-License-Identifier: LGPL-2.1-or-later
// The widgets: custom elements that show a background task. No build step, no framework, nothing inline.
//
//   <bgtask-progress ref="…">                                a bar, with what is said of the task
//   <bgtask-wait ref="…" acceptable-wait="500" redirect="/"> the same over the whole page, if it takes longer
//   <bgtask-global name-ref="…">                             a strip for the last task of a name
//   <bgtask-output ref="…">                                  what the task prints
//
// `ref` is what bgtaskd.web.reference() made; it may be set later. `base` is where the app is mounted: by default
// there where this file came from. All of them fire `bgtask-change` and, at the end, `bgtask-complete`.

/** Every text that is shown. An app in another language assigns its own before the first widget is defined. */
export const texts = {
  delayed: "Starts later",
  queued: "Waiting",
  running: "Running",
  paused: "Paused",
  finished: "Done",
  failed: "Failed",
  stopped: "Stopped",
  none: "Nothing to do",
  gone: "This task is no longer available",
  unreachable: "No connection, trying again",
  connecting: "Connecting",
  stop: "Stop",
  pause: "Pause",
  resume: "Resume",
  close: "Close",
  wait: "One moment, please",
  output: "Output",
  refused: "That did not work",
  of: (finished, total) => `${finished} of ${total}`,
  percent: (percent) => `${Math.floor(percent)} %`,
  elapsed: (time) => time,
  remaining: (time) => `about ${time} left`,
  startsIn: (time) => `in ${time}`,
  ...(globalThis.bgtaskTexts ?? {}),
};

const ENDED = new Set(["finished", "failed", "stopped"]);
const LOOKS = ["connecting", "unreachable", "gone", "none", "delayed", "queued", "running", "paused", ...ENDED];
const STREAMS_MAX = 3; // HTTP/1.1 allows a browser six connections to a server, all its tabs together
const POLL_FIRST = 500;
const POLL_MAX = 5000;
const LOST_MAX = 30000;
const HIDDEN_POLL = 5000;
const GRACE = 1500; // a restart of the daemon is over before anybody need be told
const SAY_EVERY = 5000; // a screen reader is told of new messages so often at the most

const here = new URL(".", import.meta.url);
const sources = new Map();
let streams = 0;

/** How one task stands, shared by all widgets of the page that show it. */
class Source {
  static of(base, ref) {
    const key = new URL(`status/${encodeURIComponent(ref)}`, base).href;
    let source = sources.get(key);
    if (!source) sources.set(key, (source = new Source(base, ref, key)));
    return source;
  }

  constructor(base, ref, key) {
    Object.assign(this, { base, ref, key, listeners: new Set(), view: null, interval: POLL_FIRST, refused: false });
    this.wake = () => this.listeners.size && this.restart();
  }

  url(verb) {
    return new URL(`${verb}/${encodeURIComponent(this.ref)}`, this.base);
  }

  add(listener) {
    this.listeners.add(listener);
    if (this.view) listener(this.view);
    if (this.over) this.poll(); // it ended long ago, perhaps: somebody may have removed or retried it
    if (this.listeners.size === 1) {
      document.addEventListener("visibilitychange", this.wake);
      addEventListener("online", this.wake);
      this.start();
    }
  }

  remove(listener) {
    this.listeners.delete(listener);
    if (this.listeners.size) return;
    document.removeEventListener("visibilitychange", this.wake);
    removeEventListener("online", this.wake);
    this.halt();
    sources.delete(this.key);
  }

  restart() {
    this.halt();
    this.interval = POLL_FIRST;
    this.start();
  }

  start() {
    if (this.over) return;
    // A page that nobody looks at holds no connection.
    if (document.hidden || this.refused || streams >= STREAMS_MAX) this.poll();
    else this.listen();
  }

  halt() {
    clearTimeout(this.timer);
    this.asking?.abort();
    if (this.events) {
      this.events.close();
      this.events = null;
      streams -= 1;
    }
  }

  listen() {
    streams += 1;
    const events = (this.events = new EventSource(this.url("events")));
    events.onmessage = (message) => {
      this.told(JSON.parse(message.data));
      if (this.over) this.halt();
    };
    events.onerror = () => {
      // The browser tries again by itself, unless it was refused: then asking says why.
      if (events.readyState === EventSource.CLOSED) {
        this.halt();
        this.refused = true;
        setTimeout(() => (this.refused = false), LOST_MAX);
        this.poll();
      } else {
        this.lost();
      }
    };
  }

  async poll() {
    const asking = (this.asking = new AbortController());
    const patience = setTimeout(() => asking.abort("slow"), LOST_MAX);
    try {
      const response = await fetch(this.url("status"), { signal: asking.signal, cache: "no-store" });
      if (response.ok) this.told(await response.json());
      else if (response.status === 404 || response.status === 410) this.told({ state: "gone" });
      else this.lost();
    } catch {
      if (asking !== this.asking || (asking.signal.aborted && asking.signal.reason !== "slow")) return; // halted
      this.lost();
    } finally {
      clearTimeout(patience);
    }
    if (asking !== this.asking || asking.signal.aborted || this.over || !this.listeners.size) return;
    const away = this.view?.state === "gone" || this.view?.state === "unreachable";
    this.interval = Math.min(this.interval * 1.3, away ? LOST_MAX : POLL_MAX);
    this.timer = setTimeout(() => this.start(), document.hidden ? HIDDEN_POLL : this.interval);
  }

  lost() {
    this.told({ state: "unreachable" });
  }

  told(view) {
    const now = performance.now();
    if (view.state === "unreachable" && this.view && this.view.state !== "unreachable") {
      this.grace ??= setTimeout(() => this.show({ ...view, before: this.view, at: now }), GRACE);
      return;
    }
    clearTimeout(this.grace);
    this.grace = null;
    if (this.view && changed(this.view, view)) this.interval = POLL_FIRST;
    this.show({ ...view, at: now, before: view.state === "unreachable" ? this.view?.before : undefined });
  }

  show(view) {
    this.view = view;
    for (const listener of [...this.listeners]) listener(view);
  }

  /** Whether nothing more will come of it. The last task of a name may be followed by another. */
  get over() {
    return ENDED.has(this.view?.state) && ![...this.listeners].some((one) => one.goesOn);
  }

  /** Ask for stop, pause or resume. Whether it was accepted. */
  async act(verb) {
    const headers = { "X-Bgtask-Page": "1" };
    try {
      const response = await fetch(this.url(verb), { method: "POST", headers, credentials: "same-origin" });
      if (!this.events) this.restart();
      return response.ok;
    } catch {
      return false;
    }
  }
}

function changed(before, after) {
  return ["state", "percent", "finished", "message"].some((name) => before[name] !== after[name]);
}

/** Seconds as 0:07, 12:34 or 1:02:03. */
export function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

function make(tag, name, attributes = {}) {
  const element = document.createElement(tag);
  element.className = name;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** Only what is another is set: a screen reader is told of nothing twice, the page is not laid out for nothing. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** What all widgets share: they follow a task while they are in a page. */
class Widget extends HTMLElement {
  static observedAttributes = ["ref", "name-ref", "base", "label"];
  #source = null;
  #listener = Object.assign((view) => this.#told(view), { goesOn: false });
  #completed = false;

  get ref() {
    return this.getAttribute("ref") ?? this.getAttribute("name-ref");
  }

  set ref(value) {
    if (value) this.setAttribute("ref", value);
    else this.removeAttribute("ref");
  }

  /** How the task stands, as status/REF has it; null before anything is known. */
  get view() {
    return this.#source?.view ?? null;
  }

  connectedCallback() {
    if (!this.built) {
      this.built = true;
      this.build();
    }
    this.#follow();
  }

  disconnectedCallback() {
    this.#leave();
  }

  attributeChangedCallback(name, before, after) {
    if (this.built && this.isConnected && before !== after) this.#follow();
  }

  act(verb) {
    return this.#source ? this.#source.act(verb) : Promise.resolve(false);
  }

  url(verb) {
    return this.#source.url(verb);
  }

  #leave() {
    this.#source?.remove(this.#listener);
    this.#source = null;
    this.left?.();
  }

  #follow() {
    this.#leave();
    this.#completed = false;
    this.render({ state: "connecting", at: performance.now() });
    if (!this.ref) return;
    const base = new URL(this.getAttribute("base") ?? here, document.baseURI);
    if (!base.pathname.endsWith("/")) base.pathname += "/";
    this.#listener.goesOn = !this.hasAttribute("ref");
    this.#source = Source.of(base, this.ref);
    this.#source.add(this.#listener);
  }

  #told(view) {
    this.render(view);
    const detail = { ...view };
    delete detail.at;
    delete detail.before;
    this.dispatchEvent(new CustomEvent("bgtask-change", { bubbles: true, detail }));
    if (!ENDED.has(view.state)) this.#completed = false;
    else if (!this.#completed) {
      this.#completed = true;
      const event = new CustomEvent("bgtask-complete", { bubbles: true, cancelable: true, detail });
      if (this.dispatchEvent(event)) this.completed?.(view);
    }
  }
}

class Progress extends Widget {
  build() {
    this.parts = {
      title: make("span", "bgtask-title"),
      figure: make("span", "bgtask-figure", { dir: "auto" }),
      bar: make("div", "bgtask-bar", { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100" }),
      fill: make("div", "bgtask-fill"),
      icon: make("span", "bgtask-icon", { "aria-hidden": "true" }),
      message: make("span", "bgtask-message", { dir: "auto" }),
      count: make("span", "bgtask-count", { dir: "auto" }),
      times: make("span", "bgtask-times", { dir: "auto" }),
      buttons: make("span", "bgtask-buttons"),
      live: make("span", "bgtask-live", { role: "status", "aria-live": "polite" }),
    };
    const { title, figure, bar, fill, icon, message, count, times, buttons, live } = this.parts;
    const [head, foot] = [make("div", "bgtask-head"), make("div", "bgtask-foot")];
    bar.append(fill);
    head.append(icon, title, figure);
    foot.append(message, count, times);
    for (const verb of ["pause", "resume", "stop"]) {
      const button = make("button", `bgtask-button bgtask-${verb}`, { type: "button" });
      button.textContent = texts[verb];
      button.hidden = true;
      button.addEventListener("click", () => this.#press(button, verb));
      buttons.append(button);
      this.parts[verb] = button;
    }
    this.append(head, bar, foot, buttons, live);
  }

  async #press(button, verb) {
    button.setAttribute("aria-disabled", "true"); // not disabled: the focus would be lost
    if (button.pending) return;
    button.pending = true;
    const good = await this.act(verb);
    button.pending = false;
    button.removeAttribute("aria-disabled");
    if (!good) this.#say(texts.refused);
  }

  left() {
    clearInterval(this.ticking);
  }

  render(view) {
    // While nobody can be reached, what was known last stays on the bar, greyed.
    const known = view.state === "unreachable" && view.before ? view.before : view;
    const { bar, title, figure, message, count, buttons } = this.parts;
    const percent = known.state === "finished" ? 100 : known.percent;
    const unknown = percent === null || percent === undefined;
    this.setAttribute("state", LOOKS.includes(view.state) ? view.state : "running");
    this.toggleAttribute("indeterminate", unknown && ["running", "connecting"].includes(view.state));
    this.style.setProperty("--bgtask-part", String((unknown ? 0 : percent) / 100));
    const state = texts[view.state] ?? view.state;
    const label = this.getAttribute("label") ?? known.name ?? "";
    write(title, label || state);
    const amount = unknown ? "" : texts.percent(percent);
    const plain = view.state === "running" && !unknown;
    const figures = [label && !plain ? state : "", view.state === "finished" && label ? "" : amount];
    write(figure, figures.filter(Boolean).join(" · "));
    write(message, known.message ?? "");
    write(count, known.total ? texts.of(known.finished ?? 0, known.total) : "");
    bar.setAttribute("aria-label", label || state);
    bar.setAttribute("aria-valuetext", [state, amount, known.message].filter(Boolean).join(", "));
    if (unknown) bar.removeAttribute("aria-valuenow");
    else bar.setAttribute("aria-valuenow", String(Math.floor(percent)));
    this.#offer(view.may ?? []);
    buttons.hidden = !(view.may ?? []).length;
    this.#tick(view);
    const sentence = [label, state, ENDED.has(view.state) ? "" : known.message].filter(Boolean).join(", ");
    if (view.state !== "connecting") this.#say(sentence, view.state !== this.said);
    this.said = view.state;
  }

  #offer(may) {
    for (const verb of ["pause", "resume", "stop"]) {
      const button = this.parts[verb];
      const hide = !may.includes(verb);
      if (hide && !button.hidden && document.activeElement === button) {
        // Pause turns into resume under the finger that pressed it.
        const other = may.find((one) => this.parts[one] && one !== "stop") ?? may.find((one) => this.parts[one]);
        this.parts[other]?.removeAttribute("hidden");
        this.parts[other]?.focus();
      }
      button.hidden = hide;
    }
  }

  #say(text, now = true) {
    clearTimeout(this.saying);
    const wait = now ? 0 : Math.max(0, (this.spoken ?? -SAY_EVERY) + SAY_EVERY - performance.now());
    this.saying = setTimeout(() => {
      this.spoken = performance.now();
      write(this.parts.live, text);
    }, wait);
  }

  #tick(view) {
    clearInterval(this.ticking);
    const show = () => {
      const since = ["running", "delayed"].includes(view.state) ? (performance.now() - view.at) / 1000 : 0;
      const said = [];
      if (view.elapsed !== null && view.elapsed !== undefined) said.push(texts.elapsed(clock(view.elapsed + since)));
      if (view.remaining) said.push(texts.remaining(clock(Math.max(1, view.remaining - since))));
      if (view.delay) said.push(texts.startsIn(clock(view.delay - since)));
      write(this.parts.times, said.join(" · "));
    };
    show();
    if (["running", "delayed"].includes(view.state)) this.ticking = setInterval(show, 1000);
  }
}

/** The last task of a name, at the foot of every page; nothing to see while there is none. */
class Global extends Progress {
  render(view) {
    super.render(view);
    const known = view.state === "unreachable" && view.before ? view.before.state : view.state;
    if (["connecting", "none", "gone"].includes(known)) this.hidden = true;
    else if (ENDED.has(known)) {
      // What had ended before the page was opened is no news.
      if (!this.hidden && !this.fading) this.fading = setTimeout(() => (this.hidden = true), 8000);
      return;
    } else this.hidden = false;
    clearTimeout(this.fading);
    this.fading = null;
  }

  connectedCallback() {
    this.hidden = true;
    super.connectedCallback();
  }
}

/** Full focus: the page behind is out of reach until the task has ended. What it holds is shown beside the bar. */
class Wait extends Widget {
  static observedAttributes = [...Widget.observedAttributes, "acceptable-wait"];

  build() {
    this.dialog = make("dialog", "bgtask-dialog");
    const content = make("div", "bgtask-content");
    content.append(...this.childNodes);
    if (!content.textContent.trim() && !content.children.length) {
      const title = make("p", "bgtask-please");
      title.textContent = this.getAttribute("label") ?? texts.wait;
      content.append(title);
    }
    content.id = `bgtask-wait-${Math.random().toString(36).slice(2)}`;
    this.dialog.setAttribute("aria-labelledby", content.id);
    this.bar = document.createElement("bgtask-progress");
    this.closing = make("button", "bgtask-button bgtask-close", { type: "button" });
    this.closing.textContent = texts.close;
    this.closing.hidden = true;
    this.closing.addEventListener("click", () => this.shut());
    this.dialog.append(content, this.bar, this.closing);
    // Escape closes it only when there is nothing left to wait for; browsers let a second Escape through.
    this.dialog.addEventListener("cancel", (event) => {
      if (this.closing.hidden) event.preventDefault();
      else this.wanted = false;
    });
    this.dialog.addEventListener("close", () => this.wanted && this.isConnected && this.dialog.showModal());
    // What happens is told once, by this element.
    for (const name of ["bgtask-change", "bgtask-complete"]) {
      this.dialog.addEventListener(name, (event) => event.stopPropagation());
    }
    this.append(this.dialog);
  }

  render(view) {
    if (view.state === "connecting") {
      this.done = false;
      clearTimeout(this.holding);
      this.holding = null;
      for (const name of ["ref", "base"]) {
        const value = name === "ref" ? this.ref : this.getAttribute(name);
        if (value) this.bar.setAttribute(name, value);
        else this.bar.removeAttribute(name);
      }
      this.closing.hidden = true;
      if (!this.ref) return;
    }
    const ended = ENDED.has(view.state) || view.state === "gone";
    this.done = view.state === "finished";
    this.closing.hidden = !ended;
    if (this.done) {
      this.shut();
    } else if (ended) {
      this.open();
    } else if (!this.holding) {
      const asked = Number(this.getAttribute("acceptable-wait") ?? 500);
      this.holding = setTimeout(() => this.open(), Number.isFinite(asked) ? asked : 500);
    }
  }

  open() {
    this.wanted = this.isConnected && !this.done;
    if (this.wanted && !this.dialog.open) this.dialog.showModal();
  }

  shut() {
    this.wanted = false;
    clearTimeout(this.holding);
    if (this.dialog.open) this.dialog.close();
  }

  left() {
    this.shut();
  }

  /** What comes after: the form of that id is sent, or the browser goes on to the address. */
  completed(view) {
    if (view.state !== "finished") return;
    const form = document.getElementById(this.getAttribute("submit") ?? "");
    if (form instanceof HTMLFormElement) {
      form.requestSubmit();
    } else if (this.hasAttribute("redirect")) {
      const next = new URL(this.getAttribute("redirect"), document.baseURI);
      if (next.origin === location.origin) location.assign(next); // no javascript:, no other site
    }
  }
}

const OUTPUT_MAX = 200_000; // characters kept in the page

/** What the task prints, as it comes. */
class Output extends Widget {
  build() {
    this.text = make("pre", "bgtask-text", { role: "log", tabindex: "0", dir: "ltr" });
    this.text.setAttribute("aria-label", this.getAttribute("label") ?? texts.output);
    this.append(this.text);
  }

  left() {
    clearTimeout(this.timer);
    this.round = null;
  }

  render(view) {
    if (view.state === "connecting") {
      this.text.replaceChildren();
      this.offset = null;
      this.interval = POLL_FIRST;
    } else if (!this.round && !["gone", "delayed", "queued"].includes(view.state)) {
      this.fetch((this.round = {}));
    }
  }

  async fetch(round) {
    let eof = false;
    let more = false;
    try {
      const url = this.url("output");
      url.searchParams.set("offset", this.offset ?? -65536);
      const response = await fetch(url, { cache: "no-store" });
      if (round !== this.round) return;
      if (response.ok) {
        const said = await response.json();
        if (round !== this.round) return;
        this.add(said.text);
        more = said.next !== this.offset;
        this.offset = said.next;
        eof = said.eof;
      } else if (response.status === 404 || response.status === 410) eof = true;
    } catch {
      if (round !== this.round) return;
    }
    if (eof) return;
    this.interval = more ? POLL_FIRST : Math.min(this.interval * 1.3, POLL_MAX);
    this.timer = setTimeout(() => this.fetch(round), more ? 100 : this.interval);
  }

  add(text) {
    if (!text) return;
    const { text: box } = this;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    box.append(text); // a text node: whatever is in it is no markup
    let size = box.textContent.length;
    while (size > OUTPUT_MAX && box.childNodes.length > 1) {
      size -= box.firstChild.length;
      box.firstChild.remove();
    }
    if (atEnd) box.scrollTop = box.scrollHeight;
  }
}

customElements.define("bgtask-progress", Progress);
customElements.define("bgtask-global", Global);
customElements.define("bgtask-wait", Wait);
customElements.define("bgtask-output", Output);
