"use strict";
const EVERY = 2000;  // milliseconds between two looks at the run
const KINDS = { all: "all", believed: "wrong, but believed", doubted: "right, but doubted", no_answer: "no answer" };
const LABELS = { correct: "right", wrong: "wrong", no_answer: "no answer", timeout: "grader timed out", error: "grader failed" };
const $ = (id) => document.getElementById(id);
let data = null, kind = "all";

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function draw(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/* A number with three digits that count, and k or M for thousands and millions. */
function short(x) {
  const size = Math.abs(x);
  if (size >= 1e6) return +(x / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return +(x / 1e3).toPrecision(3) + "k";
  return size >= 100 ? String(Math.round(x)) : String(+x.toPrecision(3));
}

/* Round values from low to high: of one, two or five times a power of ten, about ``count`` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

/* Powers of ten from low to high; with 3 between them where there are few. */
function powers(low, high) {
  const found = [], few = Math.log10(high / low) < 2.5;
  for (let e = Math.floor(Math.log10(low)); 10 ** e <= high * 1.001; e++)
    for (const m of few ? [1, 3] : [1]) if (m * 10 ** e >= low * 0.999 && m * 10 ** e <= high * 1.001) found.push(m * 10 ** e);
  return found;
}

/* The mean over a tenth of the line around each point. */
function smooth(points) {
  const half = Math.floor(points.length / 20);
  return points.map(([step], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1);
    return [step, near.reduce((sum, p) => sum + p[1], 0) / near.length];
  });
}

/* The range of the vertical axis: the panel's bounds where it has some, else what the points need. */
function range(panel, values) {
  if (panel.rule !== null) values = [...values, panel.rule];
  let low = Math.min(...values), high = Math.max(...values);
  if (panel.log) return [low / 1.2, high * 1.2];
  if (panel.low !== null) low = Math.min(panel.low, low);
  if (panel.high !== null) high = Math.max(panel.high, high);
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low === panel.low ? low : low - room, high === panel.high ? high : high + room];
}

function chart(panel, width) {
  const height = 170, left = 44, right = 8, top = 8, bottom = 22;
  const lines = panel.lines.map((line) => ({ ...line, points: panel.log ? line.points.filter((p) => p[1] > 0) : line.points }));
  const all = lines.flatMap((line) => line.points);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  if (!all.length) return svg;
  const last = Math.max(1, ...all.map((p) => p[0])), first = Math.min(0, ...all.map((p) => p[0]));
  const [low, high] = range(panel, all.map((p) => p[1]));
  const f = panel.log ? Math.log10 : (v) => v;
  const x = (step) => left + (width - left - right) * (step - first) / (last - first);
  const y = (v) => top + (height - top - bottom) * (f(high) - f(v)) / (f(high) - f(low));
  for (const v of panel.log ? powers(low, high) : ticks(low, high, 4)) {
    svg.append(draw("line", { x1: left, x2: width - right, y1: y(v), y2: y(v), stroke: "var(--grid)" }));
    svg.append(draw("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, short(v)));
  }
  for (const v of ticks(first, last, Math.max(2, Math.round(width / 90))).filter(Number.isInteger))
    svg.append(draw("text", { x: Math.min(x(v), width - right - 6), y: height - 6, "text-anchor": "middle" }, short(v)));
  if (panel.rule !== null)
    svg.append(draw("line", { x1: left, x2: width - right, y1: y(panel.rule), y2: y(panel.rule), stroke: "var(--muted)", "stroke-dasharray": "2 3" }));
  lines.forEach((line, i) => {
    const path = (points) => points.map((p, j) => (j ? "L" : "M") + x(p[0]).toFixed(1) + " " + y(p[1]).toFixed(1)).join("");
    const style = { fill: "none", stroke: `var(--c${i})`, "stroke-linejoin": "round" };
    if (line.points.length > 20) svg.append(draw("path", { d: path(line.points), ...style, "stroke-width": 1, opacity: 0.35 }));
    svg.append(draw("path", { d: path(smooth(line.points)), ...style, "stroke-width": 2 }));
    if (line.points.length <= 60)
      for (const p of line.points) svg.append(draw("circle", { cx: x(p[0]), cy: y(p[1]), r: 2, fill: `var(--c${i})` }));
  });
  const cursor = draw("line", { y1: top, y2: height - bottom, stroke: "var(--muted)", visibility: "hidden" });
  svg.append(cursor);
  svg.at = (clientX) => {  // the step below the pointer, and a line through it
    const step = first + (last - first) * ((clientX - svg.getBoundingClientRect().left) - left) / (width - left - right);
    const near = all.reduce((best, p) => Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best)[0];
    cursor.setAttribute("x1", x(near)); cursor.setAttribute("x2", x(near)); cursor.setAttribute("visibility", "visible");
    return near;
  };
  svg.away = () => cursor.setAttribute("visibility", "hidden");
  return svg;
}

/* The names of the lines with their values at a step, or the newest ones. */
function values(panel, step) {
  return panel.lines.map((line, i) => {
    const points = step === undefined ? line.points : line.points.filter((p) => p[0] <= step);
    const made = make("span", "run", line.name + " ");
    made.style.setProperty("--c", `var(--c${i})`);
    if (points.length) made.append(make("b", "", short(points[points.length - 1][1])));
    return made;
  });
}

function paintPanels() {
  const open = $("panels");
  open.replaceChildren(...data.panels.map((panel) => {
    const figure = make("figure"), now = make("p", "now note");
    figure.append(make("h3", "", panel.title), make("p", "note", panel.about), now);
    now.append(...values(panel));
    return figure;
  }));
  data.panels.forEach((panel, i) => {
    const figure = open.children[i], now = figure.querySelector(".now");
    const svg = chart(panel, figure.clientWidth - 30);
    svg.setAttribute("aria-label", `${panel.title}: ${now.textContent}`);
    figure.append(svg);
    if (!svg.at) return;
    svg.addEventListener("pointermove", (event) => {
      const step = svg.at(event.clientX);
      now.replaceChildren(...values(panel, step), make("span", "", `at step ${Math.round(step)}`));
    });
    svg.addEventListener("pointerleave", () => { svg.away(); now.replaceChildren(...values(panel)); });
  });
  const bins = data.every > 1 ? ` Each point is the mean of ${data.every} steps.` : "";
  $("every").textContent = data.panels.length ? `Thin: as measured. Thick: running mean over a tenth of the run. Steps count from 0.${bins}` : "";
}

function sample(rollout) {
  const box = make("div", "sample"), verdict = make("div", "verdict");
  verdict.append(make("b", rollout.label === "correct" ? "" : "wrong", LABELS[rollout.label] || rollout.label));
  if (rollout.p_yes !== null) {
    const meter = make("span", "meter"), fill = make("i");
    fill.style.width = 100 * rollout.p_yes + "%";
    meter.append(fill);
    verdict.append(make("span", "", `verdict ${rollout.p_yes.toFixed(2)}`), meter);
  }
  const reward = rollout.reward === null ? "reward unknown" : `reward ${+rollout.reward.toPrecision(3)}`;
  const cut = rollout.finish === "stop" ? "" : ", cut by the token limit";
  verdict.append(make("small", "", `${reward}, ${rollout.tokens} tokens${cut}`));
  box.append(verdict, make("pre", "", rollout.text || "(an empty text)"));
  return box;
}

function paintRollouts() {
  const groups = data.groups, all = groups.flatMap((group) => group.rollouts);
  $("read").hidden = !groups.length;
  if (!groups.length) return;
  for (const input of $("kinds").querySelectorAll("input")) {
    const n = all.filter((r) => input.value === "all" || r.kind === input.value).length;
    input.nextSibling.textContent = `${KINDS[input.value]} (${n})`;
  }
  const steps = [...new Set(groups.map((group) => group.step))];
  const when = steps.length > 1 ? `steps ${Math.min(...steps)} to ${Math.max(...steps)}` : `step ${steps[0]}`;
  const judged = all.some((r) => r.p_yes !== null) ? " Believed means a verdict of at least 0.5." : " Nothing judged them.";
  $("which").textContent = `${all.length} rollouts of ${groups.length} problems, ${when}, newest first; log.rollouts says how many groups of a step are written.${judged}`;
  $("groups").replaceChildren(...groups.flatMap((group) => {
    const shown = group.rollouts.filter((r) => kind === "all" || r.kind === kind);
    if (!shown.length) return [];
    const box = make("div", "group"), right = group.rollouts.filter((r) => r.label === "correct").length;
    const more = group.reference ? ` · reference ${group.reference}` : "";
    box.append(make("small", "", `step ${group.step} · problem ${group.id} · ${right} of ${group.rollouts.length} right${more}`));
    box.append(make("pre", "question", group.question), ...shown.map(sample));
    return [box];
  }));
  if (!$("groups").children.length) $("groups").append(make("p", "note", "None of these."));
}

function paintState(state) {
  $("words").textContent = state.words;
  $("dot").className = state.kind;
  $("track").hidden = !state.due;
  $("done").style.width = 100 * Math.min(1, state.done / (state.due || 1)) + "%";
  document.title = `${state.done}${state.due ? "/" + state.due : ""} ${data.name} · twofold watch`;
}

function paint() {
  $("name").textContent = data.name;
  $("about").textContent = data.about.map(([name, value]) => `${name} ${value}`).join(" · ");
  paintPanels();
  paintRollouts();
  $("numbers").hidden = !Object.keys(data.last).length;
  $("last").replaceChildren(...Object.entries(data.last).map(([name, value]) => {
    const row = make("tr");
    row.append(make("td", "", name), make("td", "", value === null ? "–" : String(+Number(value).toPrecision(6))));
    return row;
  }));
}

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

async function look() {
  try {
    const reply = await fetch("/data?have=" + encodeURIComponent(data ? data.version : ""));
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error.message);
    if (!data || found.version !== data.version) { data = found; paint(); }
    paintState(found.state);
    fail("");
  } catch (error) {
    fail(error instanceof TypeError ? "twofold watch does not answer: has it ended? What stands here is old." : error.message);
  }
}

for (const name of Object.keys(KINDS)) {
  const label = make("label"), input = make("input");
  Object.assign(input, { type: "radio", name: "kind", value: name, checked: name === kind });
  input.addEventListener("change", () => { kind = name; paintRollouts(); });
  label.append(input, make("span", "", KINDS[name]));
  $("kinds").append(label);
}
let waiting;
window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => { if (data) paintPanels(); }, 100); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
setInterval(() => { if (!document.hidden) look(); }, EVERY);
look();
