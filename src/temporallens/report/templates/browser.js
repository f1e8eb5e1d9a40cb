"use strict";
// The feature browser and the zoom of figures. All text is set as text; nothing from the data becomes markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const PAGE = 50;
  const byId = (name) => document.getElementById(name);
  const percent = (value) => (100 * value).toLocaleString("en", { maximumSignificantDigits: 3 }) + " %";
  const short = (value) =>
    (value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : value.toLocaleString("en", { maximumSignificantDigits: 3 })).replaceAll("-", "\u2212");

  function element(name, attributes, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  function drawn(name, attributes, ...children) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  function bytes(text) {
    return text === null ? null : Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  }

  // Data

  function read(id) {
    const data = JSON.parse(byId(id).textContent);
    const bins = data.first.length;
    for (const name of ["rate", "low", "high", "open"]) data[name] = bytes(data[name]);
    data.bins = bins;
    data.density = data.firings.map((count) => count / data.tokens);
    data.peak = data.firings.map((_, feature) => peakOf(data, feature, bins));
    data.openness = data.open && data.firings.map((_, feature) => openness(data, feature, bins));
    return data;
  }

  // What stands for a position: its name, where it has one.
  function named(data, position) {
    return data.names[position] === undefined ? String(position) : data.names[position];
  }

  function peakOf(data, feature, bins) {
    let best = 0;
    for (let bin = 1; bin < bins; bin++) if (data.rate[feature * bins + bin] > data.rate[feature * bins + best]) best = bin;
    return data.firings[feature] ? data.first[best] : null;
  }

  function openness(data, feature, bins) {
    let sum = 0;
    for (let bin = 0; bin < bins; bin++) sum += data.open[feature * bins + bin] * data.binTokens[bin];
    return sum / 255 / data.tokens;
  }

  const COLUMNS = [
    { key: "density", title: "fires", show: percent, up: false, of: (data) => data.density },
    { key: "peak", title: "peak position", show: (value, data) => named(data, value), up: true, of: (data) => data.peak },
    { key: "specialisation", title: "specialisation", show: short, up: false, of: (data) => data.columns.specialisation },
    { key: "information", title: "information, bits", show: short, up: false, of: (data) => data.columns.information },
    { key: "q", title: "q", show: short, up: true, of: (data) => data.columns.q },
    { key: "purity", title: "on one token", show: percent, up: false, of: (data) => data.columns.purity },
    { key: "persistence", title: "fired before, too", show: percent, up: false, of: (data) => data.columns.persistence },
    { key: "openness", title: "open", show: percent, up: true, of: (data) => data.openness },
    { key: "cluster", title: "cluster", show: (value) => (value < 0 ? "scattered" : String(value + 1)), up: true, of: (data) => data.columns.cluster },
  ];

  function wordsOf(data, context) {
    return context[0].map((word) => (word === null ? "\u2026" : word < 0 ? "#" + (-1 - word) : data.words[word]));
  }

  function textOf(data, feature) {
    data.texts = data.texts || [];
    if (data.texts[feature] === undefined) {
      data.texts[feature] = data.contexts[feature].map((context) => wordsOf(data, context).join("")).join("\n").toLowerCase();
    }
    return data.texts[feature];
  }

  // Pictures

  function sparkline(data, feature) {
    const width = 96, height = 22, step = width / data.bins;
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "spark", "aria-hidden": "true" });
    for (let bin = 0; bin < data.bins; bin++) {
      const tall = (data.rate[feature * data.bins + bin] / 255) * height;
      if (tall > 0) svg.append(drawn("rect", { x: bin * step, y: height - tall, width: Math.max(step - 0.5, 0.5), height: tall, class: "bar" }));
    }
    return svg;
  }

  function profile(data, feature) {
    const width = 640, height = 240, left = 58, right = 44, top = 12, bottom = 44;
    const inner = width - left - right, tall = height - top - bottom, step = inner / data.bins, scale = data.scale[feature];
    const at = (table, bin) => table[feature * data.bins + bin] / 255;
    const x = (bin) => left + bin * step, y = (share) => top + tall * (1 - share);
    const label = `Feature ${feature}: share of tokens on which it fires, by position; highest at position ${named(data, data.peak[feature])}`;
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, class: "profile", role: "img", "aria-label": label });
    const edge = (table) => Array.from({ length: data.bins }, (_, bin) => `${x(bin)},${y(at(table, bin))} ${x(bin + 1)},${y(at(table, bin))}`);
    svg.append(drawn("polygon", { points: [...edge(data.high), ...edge(data.low).map((pair) => pair.split(" ").reverse().join(" ")).reverse()].join(" "), class: "chance" }));
    for (let bin = 0; bin < data.bins; bin++) {
      const share = at(data.rate, bin);
      svg.append(drawn("rect", { x: x(bin) + 0.5, y: y(share), width: Math.max(step - 1, 1), height: tall * share, class: "bar" }));
    }
    if (data.open) svg.append(drawn("polyline", { points: edge(data.open).join(" "), class: "mask" }));
    svg.append(drawn("line", { x1: left, x2: left + inner, y1: top + tall, y2: top + tall, class: "axis" }));
    for (const share of [0, 0.5, 1]) {
      svg.append(drawn("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, percent(scale * share)));
      if (data.open) svg.append(drawn("text", { x: left + inner + 6, y: y(share) + 4, class: "right" }, percent(share)));
    }
    let last = -Infinity;
    for (let bin = 0; bin < data.bins; bin++) {
      if (x(bin) - last < 34) continue;
      last = x(bin);
      const label = step > 56 && data.last[bin] > data.first[bin] ? `${named(data, data.first[bin])}\u2013${named(data, data.last[bin])}` : named(data, data.first[bin]);
      svg.append(drawn("text", { x: x(bin) + step / 2, y: top + tall + 16, "text-anchor": "middle" }, label));
    }
    svg.append(drawn("text", { x: left + inner / 2, y: height - 6, "text-anchor": "middle" }, "position"));
    return [svg, hover(svg, data, feature, { left, step, top, tall, at, scale, width })];
  }

  function hover(svg, data, feature, place) {
    const line = element("p", { class: "source reading", "aria-live": "polite" });
    const marker = drawn("rect", { y: place.top, height: place.tall, width: place.step, class: "marker", visibility: "hidden" });
    svg.append(marker);
    svg.setAttribute("tabindex", "0");
    let current = -1;
    const say = (bin) => {
      current = Math.max(0, Math.min(data.bins - 1, bin));
      const from = data.first[current], to = data.last[current];
      const where = from === to ? `position ${named(data, from)}` : `positions ${named(data, from)} to ${named(data, to)}`;
      const chance = [place.at(data.low, current), place.at(data.high, current)].map((share) => percent(share * place.scale)).join(" to ");
      const mask = data.open ? `; open ${percent(place.at(data.open, current))}` : "";
      line.textContent = `${where}: fires on ${percent(place.at(data.rate, current) * place.scale)} of ${data.binTokens[current].toLocaleString("en")} tokens; chance ${chance}${mask}`;
      marker.setAttribute("x", place.left + current * place.step);
      marker.setAttribute("visibility", "visible");
    };
    line.textContent = "Point at the picture, or focus it and use the arrow keys, to read it.";
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      say(Math.floor((((event.clientX - box.left) / box.width) * place.width - place.left) / place.step));
    });
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      say(current + move);
    });
    return line;
  }

  // The list and one feature

  function browse() {
    const box = byId("browser");
    if (!box) return;
    const cache = new Map();
    const state = { data: null, found: [], shown: 0 };
    const select = byId("dictionary"), query = byId("query"), order = byId("order"), only = byId("specialised");

    function load() {
      if (!cache.has(select.value)) cache.set(select.value, read(select.value));
      state.data = cache.get(select.value);
      const columns = COLUMNS.filter((column) => column.of(state.data));
      const before = order.value;
      order.replaceChildren(...columns.map((column) => element("option", { value: column.key }, column.title)), element("option", { value: "number" }, "number"));
      order.value = columns.some((column) => column.key === before) || before === "number" ? before : state.data.columns.specialisation ? "specialisation" : "density";
      only.parentElement.hidden = !state.data.columns.q;
      byId("list").tHead.rows[0].replaceChildren(
        element("th", { scope: "col" }, "feature"),
        element("th", { scope: "col" }, "by position"),
        ...columns.map((column) => element("th", { scope: "col", class: "c-" + column.key }, column.title)),
      );
      state.columns = columns;
      find();
      if (state.found.length) open(state.found[0], false);
      else byId("feature").replaceChildren();
    }

    function find() {
      const data = state.data, wanted = query.value.trim().toLowerCase();
      const number = /^#?\d+$/.test(wanted) ? wanted.replace("#", "") : null;
      let found = Array.from(data.firings.keys());
      if (wanted) found = found.filter((feature) => (number !== null && String(feature).startsWith(number)) || textOf(data, feature).includes(wanted));
      if (only.checked && data.columns.q) found = found.filter((feature) => data.columns.q[feature] !== null && data.columns.q[feature] < 0.05);
      const column = COLUMNS.find((own) => own.key === order.value);
      if (column) {
        const values = column.of(data), sign = column.up ? 1 : -1;
        const rank = (feature) => (values[feature] === null ? Infinity : sign * values[feature]);
        found.sort((a, b) => (rank(a) === rank(b) ? a - b : rank(a) < rank(b) ? -1 : 1));
      }
      if (number !== null) found.sort((a, b) => Number(String(b) === number) - Number(String(a) === number));
      state.found = found;
      state.shown = 0;
      byId("list").tBodies[0].replaceChildren();
      more();
    }

    function more() {
      const body = byId("list").tBodies[0];
      for (const feature of state.found.slice(state.shown, state.shown + PAGE)) body.append(row(feature));
      state.shown = Math.min(state.found.length, state.shown + PAGE);
      byId("more").hidden = state.shown === state.found.length;
      const all = state.data.firings.length.toLocaleString("en"), silent = state.data.firings.filter((count) => count === 0).length;
      byId("count").textContent =
        `${state.found.length.toLocaleString("en")} of ${all} features, ${state.shown.toLocaleString("en")} shown; ` +
        `${silent.toLocaleString("en")} never fire on these ${state.data.tokens.toLocaleString("en")} tokens of ${state.data.documents.toLocaleString("en")} documents`;
    }

    function row(feature) {
      const button = element("button", { type: "button", class: "open" }, String(feature));
      button.addEventListener("click", () => open(feature, true));
      const cells = state.columns.map((column) => {
        const value = column.of(state.data)[feature];
        return element("td", { class: "c-" + column.key }, value === null || value === undefined ? "\u2013" : column.show(value, state.data));
      });
      const line = element("tr", { "data-feature": feature }, element("th", { scope: "row" }, button), element("td", {}, sparkline(state.data, feature)), ...cells);
      return line;
    }

    function open(feature, move) {
      const data = state.data, pane = byId("feature");
      const numbers = element("dl", {});
      const say = (name, value) => numbers.append(element("dt", {}, name), element("dd", {}, value));
      say("fires", `${data.firings[feature].toLocaleString("en")} times, on ${percent(data.density[feature])} of tokens`);
      say("mean activation", short(data.mean[feature]));
      for (const column of state.columns.slice(1)) {
        const value = column.of(data)[feature];
        if (value !== null && value !== undefined) say(column.title, column.show(value, data));
      }
      const contexts = data.contexts[feature].map((context) => {
        const words = wordsOf(data, context).map((word, place) => (place === context[1] ? element("mark", {}, word) : word));
        return element("li", {}, element("span", { class: "words" }, ...words), element("span", { class: "source" }, ` position ${named(data, context[2])}, activation ${short(context[3])}`));
      });
      const head = element("h3", {}, `Feature ${feature}`);
      const key = element("p", { class: "source key" }, element("span", { class: "k-bar" }, "fires"), element("span", { class: "k-chance" }, "chance, 95 %"), ...(data.open ? [element("span", { class: "k-mask" }, "mask open (right axis)")] : []));
      const shown = data.firings[feature]
        ? [...profile(data, feature), key, element("ol", { class: "contexts" }, ...contexts)]
        : [element("p", {}, "It never fires on these documents.")];
      pane.replaceChildren(head, numbers, ...shown);
      for (const line of byId("list").tBodies[0].rows) line.classList.toggle("chosen", line.dataset.feature === String(feature));
      if (move) {
        pane.focus({ preventScroll: true });
        if (pane.getBoundingClientRect().top < 0 || pane.getBoundingClientRect().top > innerHeight * 0.7) pane.scrollIntoView({ block: "start" });
      }
    }

    let waiting = 0;
    query.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(find, 120);
    });
    box.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    order.addEventListener("change", find);
    only.addEventListener("change", find);
    select.addEventListener("change", load);
    byId("more").addEventListener("click", more);
    box.hidden = false;
    load();
  }

  // Figures, as large as the window, or larger

  function zoom() {
    const images = Array.from(document.querySelectorAll(".gallery img"));
    const dialog = element("dialog", { class: "zoom", "aria-label": "Figure, enlarged" });
    const button = (label, sign, act) => {
      const made = element("button", { type: "button", "aria-label": label }, sign);
      made.addEventListener("click", act);
      return made;
    };
    const caption = element("p", { "aria-live": "polite" }), place = element("div", { class: "stage", tabindex: "0" });
    let current = 0;
    const show = (number) => {
      current = (number + images.length) % images.length;
      const { src, alt } = images[current], copy = element("img", { src, alt });
      copy.addEventListener("click", () => copy.classList.toggle("whole"));
      place.replaceChildren(copy);
      caption.textContent = `${current + 1} of ${images.length}: ${alt}`;
      if (!dialog.open) dialog.showModal();
    };
    dialog.append(
      element("div", { class: "bar" }, button("Previous figure", "\u2190", () => show(current - 1)), button("Next figure", "\u2192", () => show(current + 1)), caption, button("Close", "Close", () => dialog.close())),
      place,
    );
    document.body.append(dialog);
    dialog.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move || place.querySelector(".whole")) return; // a picture larger than the window is scrolled by these keys
      event.preventDefault();
      show(current + move);
    });
    for (const link of document.querySelectorAll("a[href^='#figure-']")) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        show(Number(link.hash.slice("#figure-".length)));
      });
    }
  }

  browse();
  zoom();
})();
