// The page of a report: the filter over its figures and tables, the panel of a cell, data as CSV.
//
// #marginlab-data holds {name, columns, runs}; see panel.py. A trace has in its meta the numbers of
// its cells, {cells, points, whole}; a row of a table has them, by run, in data-cells. All texts of
// the page's data are inserted as texts.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("marginlab-data").textContent);
  const names = Object.keys(data.columns);
  const chosen = names.map(() => new Set()); // by column: the places of the values; none is all
  const plots = [];

  function make(tag, given = {}, ...inside) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(given)) {
      if (key === "text") node.textContent = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value);
    }
    node.append(...inside);
    return node;
  }

  // --- the filter --------------------------------------------------------------------------------

  const active = () => chosen.some((values) => values.size > 0);
  const stays = (cell) =>
    chosen.every((values, column) => !values.size || cell.at[column] < 0 || values.has(cell.at[column]));
  let left = data.runs.map((run) => new Set(run.cells.keys())); // by run: numbers of cells

  function bar() {
    const count = make("span", { class: "count", "aria-live": "polite" });
    const reset = make("button", { type: "button", text: "All cells", onclick: () => choose(null) });
    const boxes = names.map((name, column) => {
      const now = make("b", { text: "all" });
      const values = data.columns[name].map((value, place) => {
        const box = make("input", { type: "checkbox", "data-column": column, "data-place": place });
        box.addEventListener("change", () => choose(column, place, box.checked));
        return make("label", {}, box, make("span", { text: value }));
      });
      const list = make("div", { class: "values" }, ...values);
      return make("details", { class: "column" }, make("summary", {}, `${name} `, now), list);
    });
    const nav = make("nav", { id: "filter", "aria-label": "Filter of cells" }, ...boxes, count, reset);
    document.querySelector("header").after(nav);
    document.addEventListener("click", (event) => {
      for (const box of boxes) if (!box.contains(event.target)) box.open = false;
    });
    for (const box of boxes) {
      box.addEventListener("toggle", () => {
        if (!box.open) return;
        for (const other of boxes) if (other !== box) other.open = false;
        const list = box.querySelector(".values"); // not beyond the right edge of the window
        list.style.left = "0";
        const over = list.getBoundingClientRect().right - document.documentElement.clientWidth + 8;
        if (over > 0) list.style.left = `${-over}px`;
      });
    }
  }

  function choose(column, place, on) {
    if (column === null) chosen.forEach((values) => values.clear());
    else if (on) chosen[column].add(place);
    else chosen[column].delete(place);
    left = data.runs.map(
      (run) => new Set([...run.cells.keys()].filter((number) => stays(run.cells[number]))),
    );
    const nav = document.getElementById("filter");
    nav.classList.toggle("active", active());
    for (const box of nav.querySelectorAll("input"))
      box.checked = chosen[box.dataset.column].has(Number(box.dataset.place));
    nav.querySelectorAll("summary b").forEach((now, at) => {
      const some = [...chosen[at]].sort((a, b) => a - b).map((one) => data.columns[names[at]][one]);
      now.textContent = some.length ? some.join(", ") : "all";
    });
    nav.querySelector(".count").textContent = counted();
    for (const plot of plots) show(plot);
    rows();
    document.querySelectorAll(".pair").forEach(align);
  }

  function counted() {
    const all = data.runs.reduce((sum, run) => sum + run.cells.length, 0);
    const some = left.reduce((sum, numbers) => sum + numbers.size, 0);
    return some === all ? `${all} cells` : `${some} of ${all} cells`;
  }

  const any = (numbers, run) => numbers.some((number) => left[run].has(number));
  const every = (numbers, run) => numbers.every((number) => left[run].has(number));
  const told = (trace) => (trace.meta && trace.meta.marginlab) || null;

  const painted = (color) => ({ "line.color": color, "marker.color": color });
  // The colour that a shown trace is drawn in, where it has one.
  function colorOf(trace) {
    const color = (trace.line && trace.line.color) || (trace.marker && trace.marker.color);
    return trace.visible !== false && typeof color === "string" ? color : "";
  }

  // Hide a figure's traces and fade its points; a mean of which some cells are left gives way to
  // its parts.
  function show(plot) {
    const { gd, run, first } = plot;
    const metas = gd.data.map(told);
    const partly = (meta) => meta && any(meta.cells, run) && !every(meta.cells, run);
    const parted = new Set();
    for (const meta of metas)
      if (meta && meta.whole !== undefined && partly(metas[meta.whole])) parted.add(meta.whole);
    const visible = [], legend = [], colors = {}, named = new Set();
    metas.forEach((meta, at) => {
      const whole = meta && meta.whole;
      if (whole !== undefined && whole !== null) {
        const on = parted.has(whole) && every(meta.cells, run);
        visible.push(on);
        legend.push(on && first[whole].legend !== false && !named.has(whole));
        if (on) named.add(whole);
        colors[at] = gd.colors[whole];
      } else {
        visible.push(!meta || (any(meta.cells, run) && !parted.has(at)) ? first[at].visible : false);
        legend.push(first[at].legend);
      }
    });
    Plotly.restyle(gd, { visible, showlegend: legend }, [...metas.keys()]);
    for (const [at, color] of Object.entries(colors))
      if (visible[at] && color) Plotly.restyle(gd, painted(color), [Number(at)]);
    metas.forEach((meta, at) => {
      if (!meta || !meta.points) return;
      const whole = first[at].opacity;
      const faded = meta.points.map((numbers) => (any(numbers, run) ? 1 : 0.12));
      Plotly.restyle(gd, { "marker.opacity": active() ? [faded] : [whole === undefined ? 1 : whole] }, [at]);
    });
    const known = metas.filter((meta) => meta);
    const mean = metas.some((meta, at) => {
      if (!meta || !visible[at] || meta.whole !== undefined) return false;
      return meta.points ? meta.points.some(partial) : partly(meta);
    });
    function partial(numbers) {
      return any(numbers, run) && !every(numbers, run);
    }
    plot.note.textContent = !active() ? ""
      : !known.length ? "The filter does not reach this figure: it names no cells."
      : !visible.some((on, at) => on && metas[at]) ? "The filter leaves no cell of this figure."
      : mean ? "Some of what is shown is of more cells than the filter leaves, such as a mean over seeds." : "";
  }

  function rows() {
    for (const row of document.querySelectorAll("tr[data-cells]")) {
      const cells = JSON.parse(row.dataset.cells);
      row.hidden = !cells.some((numbers, run) => any(numbers, run));
    }
  }

  // --- the panel of cells -------------------------------------------------------------------------

  function panel() {
    const close = make("button", { type: "button", class: "close", "aria-label": "Close", text: "×" });
    close.addEventListener("click", shut);
    const inside = make("div", { class: "inside" });
    const aside = make("aside", { id: "panel", "aria-label": "Cells", hidden: "" }, close, inside);
    document.body.append(aside);
    document.addEventListener("keydown", (event) => event.key === "Escape" && shut());
    // on a narrow window the panel would hide where its links lead
    inside.addEventListener("click", (event) => {
      if (innerWidth <= 720 && event.target.closest('a[href^="#"]')) shut();
    });
    addEventListener("hashchange", follow);
    follow();
  }

  function shut() {
    document.getElementById("panel").hidden = true;
    if (/^#cell-\d+-\d+$/.test(location.hash)) history.replaceState(null, "", "#cells");
  }

  function follow() {
    const found = /^#cell-(\d+)-(\d+)$/.exec(location.hash);
    if (found && data.runs[found[1]] && data.runs[found[1]].cells[found[2]])
      open(Number(found[1]), [Number(found[2])]);
  }

  function open(run, numbers) {
    const aside = document.getElementById("panel");
    const inside = aside.querySelector(".inside");
    const title = numbers.length === 1 ? "A cell" : `${numbers.length} cells`;
    inside.replaceChildren(make("h2", { text: title }));
    for (const number of numbers) inside.append(described(run, number, numbers.length === 1));
    aside.hidden = false;
    inside.scrollTop = 0;
    aside.querySelector(".close").focus({ preventScroll: true });
  }

  function described(run, number, opened) {
    const cell = data.runs[run].cells[number];
    const list = (entries) =>
      make("dl", {}, ...Object.entries(entries).flatMap(([name, value]) =>
        [make("dt", { text: name }), make("dd", { text: value })]));
    const command = `${data.runs[run].command} ${cell.argument}`;
    const copy = make("button", { type: "button", text: "Copy" });
    copy.addEventListener("click", () =>
      navigator.clipboard.writeText(command).then(() => { copy.textContent = "Copied"; }));
    const short = names.length ? names.map((name) => `${name} ${cell.columns[name]}`).join(", ") : cell.id;
    const parts = [make("summary", { text: short }), list(cell.columns)];
    if (data.runs.length > 1) parts.push(make("p", { text: `Run ${data.runs[run].name}` }));
    parts.push(list({ state: cell.state, ...cell.times }));
    parts.push(make("h3", { text: "Command" }), make("pre", { class: "command", text: command }), copy);
    if (cell.state === "finished")
      parts.push(make("p", { class: "hint", text: "Add --folder NEW to compute it again." }));
    if (Object.keys(cell.values).length)
      parts.push(make("h3", { text: "Measured last" }), list(cell.values));
    if (cell.images.length) parts.push(make("h3", { text: "Images" }), ...cell.images.map(image));
    if (cell.log.length)
      parts.push(make("h3", { text: "Log" }), make("pre", { class: "log", text: cell.log.join("\n") }));
    const links = plots.filter((plot) => plot.run === run && plot.gd.data.some((trace) =>
      told(trace) && told(trace).cells.includes(number)))
      .map((plot) => make("a", { href: `#${plot.gd.id}`, text: plot.gd.id.replace("figure-", "Figure ") }));
    if (document.getElementById(`row-${run}-${number}`))
      links.push(make("a", { href: `#row-${run}-${number}`, text: "Table of cells" }));
    if (links.length) parts.push(make("h3", { text: "On this page" }), make("p", { class: "links" }, ...links));
    return make("details", { class: "cell", ...(opened ? { open: "" } : {}) }, ...parts);
  }

  function image(one) {
    if (one.path) return make("p", {}, make("code", { text: one.path }), " is not on this page, for its size.");
    const src = one.same ? document.getElementById(one.same).src : one.src;
    const picture = make("img", { src, alt: one.name });
    const name = one.same ? make("a", { href: `#${one.same}`, text: one.name }) : one.name;
    return make("figure", {}, picture, make("figcaption", {}, name));
  }

  // --- data as CSV ---------------------------------------------------------------------------------

  function download(plot) {
    const file = new Blob([marginlabCsv(plot.gd, names, data.runs.length ? data.runs[plot.run].cells : [])], { type: "text/csv;charset=utf-8" });
    const link = make("a", { href: URL.createObjectURL(file), download: `${data.name}-${plot.gd.id}.csv` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // --- two runs side by side -----------------------------------------------------------------------

  // Give the figures of a pair the same axes: from the lower to the higher end of both.
  function align(pair) {
    const both = [...pair.querySelectorAll(".js-plotly-plot")];
    if (both.length !== 2) return;
    for (const gd of both) {
      const axes = Object.keys(gd._fullLayout).filter((name) => /^[xy]axis\d*$/.test(name));
      gd.begin = gd.begin || Object.fromEntries(axes.map((key) => {
        const { autorange, range } = gd._fullLayout[key];
        return autorange ? [`${key}.autorange`, true] : [`${key}.range`, [...range]];
      }));
      Plotly.relayout(gd, { ...gd.begin }); // what is shown may have changed
    }
    const change = {};
    for (const key of Object.keys(both[0]._fullLayout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      const [a, b] = both.map((gd) => gd._fullLayout[key]);
      if (!b || a.type !== b.type) continue;
      if (a.type === "category") {
        const all = [...new Set([...a._categories, ...b._categories])];
        Object.assign(change, { [`${key}.categoryorder`]: "array", [`${key}.categoryarray`]: all });
        change[`${key}.range`] = [-0.5, all.length - 0.5];
      } else {
        const ends = [...a.range, ...b.range];
        const range = a.type === "date" ? ends.sort() : ends.sort((p, q) => p - q);
        change[`${key}.range`] = [range[0], range[3]];
        if (a.range[0] > a.range[1]) change[`${key}.range`].reverse();
      }
    }
    for (const gd of both) Plotly.relayout(gd, change);
  }

  // Give traces of the second figure the colours of those of the same name in the first.
  function recolor(one, other) {
    const known = new Map();
    one._fullData.forEach((trace, at) => {
      if (one.colors[at] && !known.has(trace.name)) known.set(trace.name, one.colors[at]);
    });
    const used = new Set(known.values());
    const free = other._fullLayout.colorway.filter((each) => !used.has(each));
    other._fullData.forEach((trace, at) => {
      if (!other.colors[at]) return;
      if (!known.has(trace.name)) known.set(trace.name, free.shift() || other.colors[at]);
      other.colors[at] = known.get(trace.name);
      Plotly.restyle(other, painted(other.colors[at]), [at]);
    });
  }

  // --- begin ----------------------------------------------------------------------------------------

  addEventListener("load", () => {
    for (const figure of document.querySelectorAll("figure.plot")) {
      const gd = figure.querySelector(".js-plotly-plot");
      if (!gd) continue;
      gd.colors = gd._fullData.map(colorOf);
      const first = gd.data.map((trace) => ({
        visible: trace.visible === undefined ? true : trace.visible,
        legend: trace.showlegend === undefined ? true : trace.showlegend,
        opacity: trace.marker && trace.marker.opacity,
      }));
      const plot = { gd, first, run: Number(figure.dataset.run), note: make("p", { class: "reach" }) };
      const button = make("button", { type: "button", class: "csv", text: "CSV" });
      button.title = "Download the data of what the figure shows now";
      button.addEventListener("click", () => download(plot));
      figure.querySelector("figcaption").append(" ", button);
      figure.append(plot.note);
      plots.push(plot);
      if (!data.runs.length) continue;
      gd.on("plotly_click", ({ points: [point] }) => {
        const meta = told(gd.data[point.curveNumber]);
        const numbers = meta && meta.points ? meta.points[point.pointNumber] : meta && meta.cells;
        const some = (numbers || []).filter((number) => left[plot.run].has(number));
        if (!some.length) return;
        history.replaceState(null, "", "#cells"); // so that the link of a cell opens it again
        open(plot.run, some);
      });
    }
    if (data.runs.length) panel();
    for (const pair of document.querySelectorAll(".pair")) {
      const both = [...pair.querySelectorAll(".js-plotly-plot")];
      if (both.length === 2) recolor(...both);
      align(pair);
    }
    if (names.length) { bar(); choose(null); }
  });
})();
