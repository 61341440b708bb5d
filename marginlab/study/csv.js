// The data of a figure as CSV: one row for each point of the traces that are shown.
//
//     trace, the columns of its cells, panel, one column for each title of an axis, errors, text
//
// A column of cells is empty where a point is of several of them, such as a mean over seeds.
const marginlabCsv = (() => {
  "use strict";
  const plain = (text) => String(text).replace(/<br\s*\/?>/g, " ").replace(/<[^>]*>/g, "")
    .replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&").trim();
  const quoted = (value) => {
    const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };

  // The title of a trace's axis, of the axis that it matches, or of its panel.
  function titled(layout, axis, panel, letter) {
    const own = layout[axis.replace(/^([xy])/, "$1axis")] || {};
    const other = own.matches && layout[own.matches.replace(/^([xy])/, "$1axis")];
    for (const one of [own, other]) {
      const text = one && one.title && plain(one.title.text || "");
      if (text && !/^Click to enter/.test(text)) return text;
    }
    return letter === "y" && panel ? panel : letter;
  }

  function panelOf(layout, axis) {
    const own = layout[axis.replace(/^x/, "xaxis")];
    const high = own && layout[(own.anchor || "y").replace(/^y/, "yaxis")];
    if (!own || !high || !own.domain || !high.domain) return "";
    const middle = (own.domain[0] + own.domain[1]) / 2;
    const found = (layout.annotations || []).find((one) => one.xref === "paper" && one.yref === "paper"
      && !one.showarrow && Math.abs(one.x - middle) < 1e-6 && Math.abs(one.y - high.domain[1]) < 1e-6);
    return found ? plain(found.text) : "";
  }

  return (gd, names, cells) => {
    const layout = gd._fullLayout, table = [];
    for (const trace of gd._fullData) {
      if (trace.visible !== true) continue;
      const meta = (gd.data[trace.index].meta || {}).marginlab, panel = panelOf(layout, trace.xaxis || "x");
      const [x, y] = ["x", "y"].map((letter) => {
        const title = titled(layout, trace[`${letter}axis`] || letter, panel, letter);
        return ["trace", "panel", "text", ...names].includes(title) ? `${title} (${letter})` : title;
      });
      const add = (values, at) => {
        const numbers = meta ? (meta.points ? meta.points[at] : meta.cells) : [];
        const row = { trace: plain(trace.name) };
        for (const name of names) {
          const found = new Set(numbers.map((number) => cells[number].columns[name]));
          if (found.size === 1) row[name] = [...found][0];
        }
        table.push({ row: panel ? { ...row, panel } : row, values });
      };
      if (trace.z && trace.z.length && trace.z[0].length !== undefined) {
        trace.z.forEach((line, i) => [...line].forEach((z, j) =>
          add({ [x]: trace.x ? trace.x[j] : j, [y]: trace.y ? trace.y[i] : i, value: z }, i)));
        continue;
      }
      const length = Math.max((trace.x || []).length, (trace.y || []).length);
      for (let at = 0; at < length; at++) {
        const values = {
          [x]: trace.x ? trace.x[at] : trace.x0 === undefined ? at : trace.x0 + at * (trace.dx || 1),
          [x === y ? `${y} (y)` : y]: trace.y && trace.y[at],
        };
        for (const [bars, name] of [[trace.error_x, x], [trace.error_y, y]]) {
          if (!bars || bars.visible === false || !bars.array) continue;
          values[`${name}, above`] = bars.array[at];
          values[`${name}, below`] = (bars.arrayminus || bars.array)[at];
        }
        for (const words of [trace.text, trace.hovertext])
          if (Array.isArray(words)) values.text = plain(words[at]);
        add(values, at);
      }
    }
    const keys = (of) => [...new Set(table.flatMap((entry) => Object.keys(entry[of])))];
    const head = ["trace", ...keys("row").filter((key) => key !== "trace")];
    const axes = keys("values").sort((a, b) => (a === "text") - (b === "text"));
    const lines = [[...head, ...axes], ...table.map(({ row, values }) =>
      [...head.map((key) => row[key]), ...axes.map((key) => values[key])])];
    return lines.map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
  };
})();
