"use strict";
(() => {
  const root = document.currentScript.parentElement;
  const $ = (name) => root.querySelector(".nx-" + name);
  const D = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const C = D.candidates, COUNT = C.run.length, RANGE = 1000;
  const STATES = ["stopped", "infeasible"];
  const SYMBOLS = ["circle", "square", "triangle", "diamond"];
  const many = D.runs.length > 1;
  const kinds = [...new Set(D.rows.map((row) => row.kind))];
  const colorOf = (kind) => D.style.colors[kinds.indexOf(kind) % D.style.colors.length];
  const runColor = (run) => D.style.colors[run % D.style.colors.length];
  const shown = new Set(D.runs.keys());
  let table = 0, budget = Infinity, selected = -1, hovered = -1, published = true;
  let scored = [], unscored = [], points = [], fronts = [];

  // Figures, as the report writes them.
  const showMs = (ms) => (ms < 0.01 ? +ms.toPrecision(2) : ms.toFixed(ms < 10 ? 3 : ms < 100 ? 2 : 1)) + " ms";
  const showCount = (count) => {
    for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (count >= size) return +(count / size).toPrecision(4) + " " + letter;
    }
    return String(count);
  };
  const percent = (share) => (100 * share).toFixed(1) + " %";
  const number = (value) => String(+value.toPrecision(4));

  const make = (name, attributes = {}, ...children) => {
    const svg = ["svg", "g", "path", "line", "text", "title"].includes(name);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  };
  const fill = (place, ...children) => place.replaceChildren(...children);

  const ms = (i, on = table) => C.ms[on][i];
  const nameOf = (i) => "trial " + C.number[i] + (many ? " of " + D.runs[C.run[i]].label : "");
  const link = (i) => make("button", { type: "button", class: "nx-link", onclick: () => select(i) }, nameOf(i));
  const finalist = (i) => D.runs[C.run[i]].finalists[C.number[i]];
  const isWinner = (i) => D.runs[C.run[i]].winner === C.number[i];

  function choose() {
    const all = [...Array(COUNT).keys()].filter((i) => shown.has(C.run[i]) && ms(i) !== null);
    all.sort((a, b) => ms(a) - ms(b) || a - b);
    scored = all.filter((i) => C.state[i] === "evaluated");
    unscored = all.filter((i) => C.state[i] !== "evaluated");
    fronts = [...shown].sort().map((run) => {
      let least = Infinity;
      return scored.filter((i) => C.run[i] === run && C.value[i] < least && ((least = C.value[i]), true));
    });
  }

  function bestOf(places) {
    return places.reduce((best, i) => (best < 0 || C.value[i] < C.value[best] ? i : best), -1);
  }

  // The budget: the slider runs over the latencies of all candidates, evenly in their logarithm.
  const span = () => {
    const all = [...scored, ...unscored].map((i) => ms(i));
    return all.length ? [Math.min(...all) * 0.999, Math.max(...all) * 1.001] : [1, 2];
  };
  const toSlider = (limit) => {
    const [low, high] = span();
    return Math.round(RANGE * Math.min(1, Math.max(0, Math.log(limit / low) / Math.log(high / low))));
  };
  const fromSlider = (value) => {
    const [low, high] = span();
    return low * (high / low) ** (value / RANGE);
  };

  function setBudget(limit) {
    budget = limit;
    $("budget").value = toSlider(limit);
    $("budget").setAttribute("aria-valuetext", showMs(limit));
    $("limit").textContent = showMs(limit);
    const fits = scored.filter((i) => ms(i) <= budget), best = bestOf(fits);
    const told = [fits.length + " of " + scored.length + " scored candidates take at most " + showMs(budget) + ". "];
    if (best >= 0) told.push("Best of them: ", link(best), ", " + about(best) + ".");
    fill($("best"), ...told);
    $("best").dataset.best = best < 0 ? "" : C.number[best];
    flips();
    draw();
  }

  function about(i) {
    const told = [showMs(ms(i)) + " predicted"];
    if (C.value[i] !== null) told.push(D.score + " " + number(C.value[i]));
    if (C.val_accuracy[i] !== null) told.push("accuracy " + percent(C.val_accuracy[i]));
    return told.join(", ");
  }

  // The plot.
  const SHAPES = {
    circle: "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0", square: "M-4.5,-4.5h9v9h-9z", triangle: "M0,-6L5.6,4.4H-5.6z",
    diamond: "M0,-6.2L6.2,0L0,6.2L-6.2,0z", cross: "M-4,-4L4,4M-4,4L4,-4", ring: "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
    big: "M-9,0a9,9 0 1,0 18,0a9,9 0 1,0 -18,0",
    star: "M0,-10L2.9,-3.2L10,-2.8L4.6,1.9L6.3,9L0,5.1L-6.3,9L-4.6,1.9L-10,-2.8L-2.9,-3.2z",
  };
  const put = (shape, x, y, more) => make("path", { d: SHAPES[shape], transform: `translate(${x.toFixed(1)},${y.toFixed(1)})`, ...more });

  function ticks(low, high, log, most) {
    if (log) {
      const found = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
        for (const m of [1, 2, 5]) if (m * 10 ** e >= low && m * 10 ** e <= high) found.push(m * 10 ** e);
      }
      return found;
    }
    const raw = (high - low) / most, unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * [1, 2, 5, 10].find((m) => m * unit >= raw);
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(k * step);
    return found;
  }

  function draw() {
    const plot = $("plot"), width = plot.clientWidth;
    if (!width) return;
    const states = STATES.filter((state) => unscored.some((i) => C.state[i] === state));
    const near = published ? inView() : [];
    const height = width < 560 ? 300 : 400, strip = 24 * states.length;
    const box = { left: 58, right: width - (near.length ? 52 : 14), top: 10, bottom: height - 44 };
    const svg = make("svg", { height: height + strip, viewBox: `0 0 ${width} ${height + strip}`, "aria-hidden": "true" });
    const all = [...scored, ...unscored];
    points = [];
    if (!all.length) {
      fill(plot, "No candidate of the runs shown is priced by this table.");
      return;
    }
    let low = Math.min(...all.map((i) => ms(i))), high = Math.max(...all.map((i) => ms(i)));
    const log = high / low > 4;
    [low, high] = log ? [low / 1.12, high * 1.12] : [low - 0.06 * (high - low || low), high + 0.06 * (high - low || low)];
    const at = (value, from, to, a, b, curve) => a + ((curve(value) - curve(from)) / (curve(to) - curve(from))) * (b - a);
    const x = (value) => at(value, low, high, box.left, box.right, log ? Math.log : (v) => v);
    let values = scored.map((i) => C.value[i]);
    let least = Math.min(...values), most = Math.max(...values);
    if (!values.length) [least, most] = [0, 1];
    const room = 0.08 * (most - least) || 0.1 * Math.abs(most) || 1;
    [least, most] = [least - room, most + room];
    const y = (value) => at(value, least, most, box.bottom, box.top, (v) => v);
    const bottom = box.bottom + strip;
    for (const tick of ticks(low, high, log, width / 90)) {
      svg.append(make("line", { x1: x(tick), x2: x(tick), y1: box.top, y2: bottom, stroke: "#e7ebef" }));
      svg.append(make("text", { x: x(tick), y: bottom + 17, "text-anchor": "middle" }, number(tick)));
    }
    for (const tick of ticks(least, most, false, 6)) {
      svg.append(make("line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick), stroke: "#e7ebef" }));
      svg.append(make("text", { x: box.left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
    }
    const frame = `M${box.left},${box.top}V${box.bottom}H${box.right}`;
    svg.append(make("path", { d: frame, fill: "none", stroke: "#b4bcc5" }));
    svg.append(make("text", { x: (box.left + box.right) / 2, y: bottom + 36, "text-anchor": "middle" }, "predicted latency (ms)"));
    const turned = `translate(13,${(box.top + box.bottom) / 2}) rotate(-90)`;
    svg.append(make("text", { transform: turned, "text-anchor": "middle" }, D.score));
    states.forEach((state, line) => {
      const level = box.bottom + 24 * line + 15;
      svg.append(make("text", { x: box.left - 4, y: level + 4, "text-anchor": "end", class: "nx-state" }, state));
      for (const i of unscored) {
        if (C.state[i] !== state) continue;
        const style = state === "infeasible" ? { stroke: D.style.budget } : { stroke: "#56b4e9" };
        svg.append(put(state === "infeasible" ? "cross" : "ring", x(ms(i)), level, { fill: "none", ...style, "stroke-opacity": 0.5 }));
        points.push({ x: x(ms(i)), y: level, i });
      }
    });
    if (near.length) {
      const tops = near.map((net) => net.top1), a = Math.min(...tops), b = Math.max(...tops), edge = 0.1 * (b - a) || 0.01;
      const right = (top1) => at(top1, b + edge, a - edge, box.bottom, box.top, (v) => v); // low values are good on the left
      for (const tick of ticks(100 * (a - edge), 100 * (b + edge), false, 5)) {
        svg.append(make("text", { x: box.right + 5, y: right(tick / 100) + 4, class: "nx-grey" }, number(tick)));
      }
      const title = `translate(${width - 4},${(box.top + box.bottom) / 2}) rotate(-90)`;
      svg.append(make("text", { transform: title, "text-anchor": "middle", class: "nx-grey" }, "published ImageNet top-1 (%)"));
      for (const net of near) {
        svg.append(put("ring", x(net.ms), right(net.top1), { fill: "none", stroke: "#8a94a0" }));
        points.push({ x: x(net.ms), y: right(net.top1), net });
      }
    }
    for (const point of D.points) { // measured on the device of the search, so beside its own table alone
      if (!shown.has(point.run) || !D.tables[table].own.includes(point.run) || point.ms < low || point.ms > high) continue;
      const line = { x1: x(point.ms), x2: x(point.ms), y1: box.top, y2: bottom, stroke: "#6b7580", "stroke-width": 2, "stroke-dasharray": "2 3" };
      svg.append(make("line", line, make("title", {}, `${point.name}, measured ${showMs(point.ms)}`)));
      svg.append(make("text", { transform: `translate(${x(point.ms) - 4},${box.top + 4}) rotate(-90)`, "text-anchor": "end", class: "nx-grey nx-state" }, point.name));
    }
    fronts.forEach((front) => {
      if (!front.length) return;
      const path = front.map((i, k) => (k ? `H${x(ms(i)).toFixed(1)}V${y(C.value[i]).toFixed(1)}` : `M${x(ms(i)).toFixed(1)},${y(C.value[i]).toFixed(1)}`));
      const stroke = many ? runColor(C.run[front[0]]) : D.style.front;
      svg.append(make("path", { d: path.join(""), fill: "none", stroke, "stroke-width": 2 }));
    });
    const onFront = new Set(fronts.flat());
    for (const i of scored) {
      const color = many ? runColor(C.run[i]) : onFront.has(i) ? D.style.front : D.style.colors[0];
      const shape = many ? SYMBOLS[C.run[i] % SYMBOLS.length] : "circle";
      svg.append(put(shape, x(ms(i)), y(C.value[i]), { fill: color, opacity: ms(i) > budget ? 0.25 : 1, stroke: "white", "stroke-width": 0.7 }));
      points.push({ x: x(ms(i)), y: y(C.value[i]), i });
    }
    for (const i of scored) {
      if (isWinner(i)) svg.append(put("star", x(ms(i)), y(C.value[i]), { fill: D.style.winner, stroke: "white" }));
    }
    if (budget <= high) {
      const place = x(Math.max(low, budget));
      svg.append(make("line", { x1: place, x2: place, y1: box.top, y2: bottom, stroke: D.style.budget, "stroke-width": 2, "stroke-dasharray": "6 4" }));
    }
    const ring = points.find((point) => point.i === selected);
    if (ring) svg.append(put("big", ring.x, ring.y, { fill: "none", stroke: "#1f2933", "stroke-width": 2.5, class: "nx-ring" }));
    fill(plot, svg);
  }

  // Published networks near the candidates; those far from them would squeeze the plot.
  function inView() {
    const [low, high] = span();
    return D.published[table].filter((net) => net.ms >= low / 1.1 && net.ms <= high * 1.1);
  }

  function nearest(event) {
    const box = $("plot").getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    let found = null, least = event.pointerType === "touch" ? 30 : 18;
    for (const point of points) {
      const off = Math.hypot(point.x - px, point.y - py);
      if (off < least) [found, least] = [point, off];
    }
    return found;
  }

  function hover(event) {
    const point = event && nearest(event), place = point && point.i !== undefined ? point.i : -1;
    root.querySelector(".nx-tip")?.remove();
    if (point) {
      const net = point.net;
      const lines = net ? [net.name, "published: " + percent(net.top1) + " of ImageNet", net.source, showMs(net.ms) + " predicted"] : [nameOf(point.i), ...about(point.i).split(", ")];
      const tip = make("div", { class: "nx-tip" }, ...lines.flatMap((line) => [line, make("br")]));
      $("plot").append(tip);
      const left = Math.min(point.x + 12, $("plot").clientWidth - tip.offsetWidth - 2);
      const above = point.y - tip.offsetHeight - 10;
      tip.style.left = Math.max(0, left) + "px";
      tip.style.top = (above > 0 ? above : point.y + 14) + "px";
    }
    if (place !== hovered) {
      hovered = place;
      detail(hovered >= 0 ? hovered : selected);
    }
  }

  // One candidate.
  function select(i) {
    selected = i;
    hovered = -1;
    detail(i);
    draw();
    if (i >= 0) $("say").textContent = nameOf(i) + ", " + about(i);
  }

  function fact(title, ...told) {
    return make("div", {}, make("span", {}, title), ...told);
  }

  function detail(i) {
    const place = $("one");
    if (i < 0) return fill(place);
    place.dataset.number = C.number[i];
    const marks = [];
    if (isWinner(i)) marks.push("winner");
    if (fronts.some((front) => front.includes(i))) marks.push("on the front");
    if (C.state[i] !== "evaluated") marks.push(C.state[i] === "infeasible" ? "over a budget, never scored" : C.state[i]);
    const own = D.tables.findIndex((each) => each.own.includes(C.run[i]));
    const facts = [];
    const interval = (on) => (C.low[on][i] === null ? "" : ` (${showMs(C.low[on][i]).replace(" ms", "")} to ${showMs(C.high[on][i])})`);
    facts.push(fact(own === table ? "predicted" : "predicted on this table", ms(i) === null ? "not priced" : showMs(ms(i)) + interval(table)));
    if (own !== table && own >= 0) facts.push(fact("predicted on the table of the search", showMs(ms(i, own)) + interval(own)));
    const again = finalist(i);
    if (again) facts.push(fact("measured where it was searched", again.measured === null ? "not measured" : showMs(again.measured)));
    if (C.value[i] !== null) facts.push(fact(D.score, number(C.value[i])));
    if (C.val_accuracy[i] !== null) facts.push(fact("validation accuracy", percent(C.val_accuracy[i])));
    if (again && again.value !== null) {
      const accuracy = again.accuracy === null ? "" : ", " + percent(again.accuracy);
      facts.push(fact(`trained ${again.again} more time${again.again > 1 ? "s" : ""}, mean`, number(again.value) + accuracy));
    }
    facts.push(fact("parameters", showCount(C.params[i])), fact("MACs", showCount(C.macs[i])));
    const heading = make("h3", {}, nameOf(i), " ", make("code", {}, C.arch[i]), ...marks.map((mark) => make("span", { class: "nx-mark" }, mark)));
    const reason = C.state[i] !== "evaluated" && C.reason[i] ? [make("p", { class: "nx-soft" }, C.reason[i])] : [];
    fill(place, heading, ...reason, make("div", { class: "nx-facts" }, ...facts), ...architecture(i), command(i));
  }

  // Its blocks in order, as wide as their part of the latency on this table, or of the MACs where the table has no rows.
  function architecture(i) {
    const stages = C.blocks[i];
    if (!stages) return [make("p", { class: "nx-soft" }, "Its blocks are not known here: this version lays its parameters otherwise, or the run has no best.json.")];
    const weights = D.tables[table].weights, timed = ms(i) !== null && stages.every(([, rows]) => rows.every((row) => weights[row] !== null));
    const weight = (row) => (timed ? weights[row] : D.rows[row].macs);
    const sum = stages.flatMap(([, rows]) => rows).reduce((total, row) => total + weight(row), 0) || 1;
    const outside = timed ? Math.max(0, D.tables[table].outside_us[C.run[i]] / 1000 / ms(i)) : 0;
    const part = (row) => (weight(row) / sum) * (1 - outside);
    const strip = make("div", { class: "nx-strip", role: "img", "aria-label": "blocks in order; the table below says the same" });
    const lines = [], used = new Set();
    for (const [name, rows] of stages) {
      rows.forEach((row, k) => {
        const block = D.rows[row], share = part(row);
        used.add(block.kind);
        const title = `stage ${name}: ${block.block} on ${block.inputs}` + (block.width ? `, ${block.width} channels` : "") +
          `, ${showCount(block.macs)} MACs` + (timed ? `, ${showMs(share * ms(i))}` : "") + `, ${percent(share)}`;
        const style = `width:${(100 * share).toFixed(2)}%;background:${colorOf(block.kind)}`;
        strip.append(make("span", { title, style, ...(k ? {} : { class: "nx-first" }) }, share > 0.075 ? block.kind : ""));
      });
      const runs = [];
      for (const row of rows) {
        const text = D.rows[row].block;
        if (runs.length && runs[runs.length - 1][0] === text) runs[runs.length - 1][1]++;
        else runs.push([text, 1]);
      }
      const share = rows.reduce((total, row) => total + part(row), 0);
      const widths = rows.map((row) => D.rows[row].width).filter((width) => width);
      lines.push(make("tr", {}, make("td", {}, name), make("td", {}, runs.map(([text, count]) => text + (count > 1 ? " x" + count : "")).join(", ")),
        make("td", { class: "nx-number" }, widths.length ? String(widths[widths.length - 1]) : ""),
        ...(timed ? [make("td", { class: "nx-number" }, showMs(share * ms(i)))] : []), make("td", { class: "nx-number" }, percent(share))));
    }
    if (outside > 0.005) strip.append(make("span", { title: `outside the blocks, ${percent(outside)}`, style: `width:${100 * outside}%;background:#b4bcc5` }));
    const key = make("div", { class: "nx-key nx-soft" }, ...[...used].map((kind) => make("span", {}, make("i", { style: "background:" + colorOf(kind) }), kind)));
    const titles = ["stage", "blocks", "channels", ...(timed ? ["latency", "of the latency"] : ["of the MACs"])];
    const head = make("tr", {}, ...titles.map((text, k) => make("th", k > 1 ? { class: "nx-number" } : {}, text)));
    const told = timed ? "as wide as their part of the predicted latency" : "as wide as their MACs, since this table's rows are not at hand";
    key.prepend(make("span", {}, "Blocks in order, " + told + ":"));
    return [strip, key, make("div", { class: "nx-scroll" }, make("table", {}, head, ...lines))];
  }

  function command(i) {
    const [before, after] = D.runs[C.run[i]].command, text = before + C.number[i] + after;
    const code = make("code", {}, text);
    const copy = async (event) => {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      const done = navigator.clipboard ? await navigator.clipboard.writeText(text).then(() => true, () => false) : false;
      event.target.textContent = done || document.execCommand("copy") ? "copied" : "press Ctrl+C";
    };
    return make("div", { class: "nx-command" }, code, make("button", { type: "button", onclick: copy }, "copy"));
  }

  // Another table: who wins there, whose order flips. Pairs count whose order is beyond the intervals on both tables.
  function flips() {
    const base = D.tables.findIndex((each) => each.own.some((run) => shown.has(run)));
    const place = $("flips");
    if (D.tables.length < 2) return fill(place);
    if (base === table || base < 0) return fill(place, make("p", { class: "nx-soft" }, "Choose another table above: the same candidates on another device or runtime, nothing trained again."));
    const both = scored.filter((i) => ms(i, base) !== null);
    const fits = both.filter((i) => ms(i) <= budget), before = [...both].sort((a, b) => ms(a, base) - ms(b, base)).slice(0, fits.length);
    const here = bestOf(fits), there = bestOf(before);
    const told = [];
    if (here >= 0) {
      told.push(make("p", {}, `Of the ${fits.length} fastest on this table the best is `, link(here), `; of the ${fits.length} fastest on ${D.tables[base].name} `, ...(here === there ? ["the same one"] : ["it is ", link(there)]), "."));
    }
    const sure = both.every((i) => C.low[table][i] !== null && C.low[base][i] !== null);
    const end = (side, on, i) => (sure ? C[side][on][i] : ms(i, on));
    let pairs = 0, flipped = 0;
    const found = [];
    for (let a = 0; a < both.length; a++) {
      for (let b = a + 1; b < both.length; b++) {
        const i = both[a], j = both[b]; // i is the faster one here
        const gap = end("low", table, j) / end("high", table, i);
        if (gap <= 1) continue;
        const same = end("high", base, i) < end("low", base, j), other = end("low", base, i) / end("high", base, j);
        if (!same && other <= 1) continue;
        pairs++;
        if (same) continue;
        flipped++;
        found.push([Math.min(gap, other), i, j]);
        if (found.length > 4000) { found.sort((p, q) => q[0] - p[0]); found.length = 50; }
      }
    }
    found.sort((p, q) => q[0] - p[0]);
    const how = sure ? "whose order is beyond the intervals on both tables" : "by predictions alone, since a table gives no intervals";
    place.dataset.pairs = pairs;
    place.dataset.flipped = flipped;
    told.push(make("p", {}, `Of ${pairs} pairs ${how}, ${flipped} change${flipped === 1 ? "s" : ""} order against ${D.tables[base].name}${flipped ? ":" : "."}`));
    const list = found.slice(0, 3).map(([, i, j]) => make("li", {}, link(i), ` is faster here (${showMs(ms(i))} to ${showMs(ms(j))}), `, link(j), ` there (${showMs(ms(j, base))} to ${showMs(ms(i, base))})`));
    fill(place, make("h3", {}, "Against the table of the search"), ...told, ...(list.length ? [make("ul", {}, ...list)] : []));
  }

  function toTable(next) {
    const fits = scored.filter((i) => ms(i) <= budget && C.ms[next][i] !== null).length;
    table = next;
    const about = D.tables[table];
    const here = about.here ? "a machine like the one that made this page" : "not the machine that made this page";
    fill($("where"), `${about.cpu}; ${about.runtime}, ${about.precision}, ${about.threads} thread${about.threads > 1 ? "s" : ""}: ${here}` + (about.classes ? `; priced with a head of ${about.classes} classes, which this table has` : ""));
    choose();
    legend();
    const lost = COUNT - scored.length - unscored.length - [...C.run].filter((run) => !shown.has(run)).length;
    const hint = [
      "Point at a candidate, click it, or use the arrow keys.",
      lost ? `${lost} candidates are not priced by this table.` : "",
      D.left_out ? `${D.left_out} of ${D.left_out + COUNT} candidates are not in this page: whoever is the best within some budget is.` : "",
    ];
    $("hint").textContent = hint.filter((text) => text).join(" ");
    // Another device has other latencies: its budget lets as many through.
    setBudget(budget === Infinity ? span()[1] : scored.length ? (fits ? ms(scored[Math.min(fits, scored.length) - 1]) * 1.0005 : span()[0]) : span()[1]);
    detail(selected);
  }

  function legend() {
    const parts = [];
    if (many) {
      D.runs.forEach((run, k) => {
        const box = make("input", { type: "checkbox", ...(shown.has(k) ? { checked: "" } : {}), onchange: () => {
          if (!shown.delete(k)) shown.add(k);
          toTable(table);
        } });
        const icon = make("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", style: "width:14px" }, put(SYMBOLS[k % SYMBOLS.length], 0, 0, { fill: runColor(k) }));
        parts.push(make("label", {}, box, icon, `${run.label} (${run.space})`));
      });
    } else {
      const items = [["circle", { fill: D.style.colors[0] }, "scored"], ["circle", { fill: D.style.front }, "front"], ["star", { fill: D.style.winner }, "winner"]];
      for (const [shape, style, text] of items) {
        parts.push(make("label", {}, make("svg", { width: 18, height: 18, viewBox: "-11 -11 22 22", style: "width:18px" }, put(shape, 0, 0, style)), text));
      }
    }
    const near = inView().length, far = D.published[table].length - near;
    if (near) {
      const box = make("input", { type: "checkbox", ...(published ? { checked: "" } : {}), onchange: () => { published = !published; draw(); } });
      parts.push(make("label", {}, box, `published networks, right axis${far ? ` (${far} more are out of view)` : ""}`));
    }
    fill($("legend"), ...parts);
  }

  // Input.
  D.tables.forEach((each, k) => $("table").append(make("option", { value: k }, each.name + (each.own.length ? " (of the search)" : ""))));
  $("table").addEventListener("change", (event) => toTable(+event.target.value));
  $("budget").addEventListener("input", (event) => setBudget(fromSlider(+event.target.value)));
  const plot = $("plot");
  plot.addEventListener("pointermove", (event) => event.pointerType !== "touch" && hover(event));
  plot.addEventListener("pointerleave", () => hover(null));
  plot.addEventListener("click", (event) => {
    const point = nearest(event);
    if (point && point.i !== undefined) select(point.i);
  });
  plot.addEventListener("keydown", (event) => {
    const front = fronts.flat().sort((a, b) => ms(a) - ms(b));
    const step = (list, by) => {
      const now = list.indexOf(selected);
      const beside = list.findIndex((i) => ms(i) > (selected < 0 ? -1 : ms(selected)));
      const next = now >= 0 ? now + by : beside < 0 ? list.length - 1 : by > 0 ? beside : beside - 1;
      return list[Math.min(list.length - 1, Math.max(0, next))];
    };
    const keys = {
      ArrowRight: () => step(scored, 1), ArrowLeft: () => step(scored, -1), ArrowUp: () => step(front, 1), ArrowDown: () => step(front, -1),
      Home: () => scored[0], End: () => scored[scored.length - 1], Enter: () => bestOf(scored.filter((i) => ms(i) <= budget)),
    };
    if (!keys[event.key] || !scored.length || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const next = keys[event.key]();
    if (next >= 0) select(next);
  });
  const limit = D.runs[0].budget_ms;
  choose();
  toTable(0);
  if (limit !== null) setBudget(limit);
  selected = scored.find(isWinner) ?? scored[0] ?? -1;
  detail(selected);
  draw();
  let width = plot.clientWidth;
  new ResizeObserver(() => { if (plot.clientWidth !== width) { width = plot.clientWidth; draw(); } }).observe(plot);
})();
