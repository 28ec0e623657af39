"use strict";
// What all parts of the page need. Nothing is ever parsed as HTML: text goes in as text.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const CLASSES = [
  ["failed", "failed"], ["flaky", "flaky"], ["passed", "passed"], ["ignored", "ignored"], ["not-reached", "not reached"],
];

/** An element with properties and children. */
function el(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function duration(seconds) {
  if (seconds < 0.0005) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1e3)} ms`;
  if (seconds < 60) return `${seconds.toFixed(2)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function bytes(count) {
  if (count === undefined || count === null) return "–";
  if (count < 1 << 20) return `${Math.max(1, Math.round(count / 1024))} KiB`;
  if (count < 1 << 30) return `${(count / (1 << 20)).toFixed(1)} MiB`;
  return `${(count / (1 << 30)).toFixed(2)} GiB`;
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

// The tests, with what is asked of them often. The last attempt is the one that counts.
const TESTS = DATA.tests.map((test, index) => {
  const attempts = test.attempts || [];
  const last = attempts[attempts.length - 1];
  const binary = DATA.binaries[test.binary];
  const name = (test.name || "(the whole program)") + (test.repetition ? ` #${test.repetition}` : "");
  return {
    index, binary, name, repetition: test.repetition, class: test.class, attempts, last,
    word: test.class === "flaky" ? "FLAKY" : last ? last.word : test.class === "ignored" ? "IGNORED" : "NOT RUN",
    label: `${binary} ${name}`,
    started: last ? last.started : Infinity,
    wall: attempts.reduce((sum, attempt) => sum + attempt.wall, 0),
    cpu: attempts.some((attempt) => !attempt.shared)
      ? attempts.reduce((sum, attempt) => sum + (attempt.user || 0) + (attempt.system || 0), 0) : undefined,
    memory: attempts.reduce((most, attempt) => Math.max(most, attempt.memory || 0), 0) || undefined,
    remarks: [
      last && last.leaked && "left processes behind",
      last && last.denied && "tried to reach the network",
      last && last.wrote && "wrote files",
      attempts.length > 1 && `${attempts.length} attempts`,
    ].filter(Boolean),
  };
});

// Each attempt is a bar of the timeline.
const BARS = TESTS.flatMap((test) => test.attempts.map((attempt, number) => ({
  test, attempt, number,
  start: attempt.started, end: attempt.started + attempt.wall, lane: attempt.lane,
  class: attempt.word === "PASS" ? (test.class === "flaky" ? "flaky" : "passed") : "failed",
}))).sort((a, b) => a.start - b.start || a.lane - b.lane);
const LANES = BARS.reduce((most, bar) => Math.max(most, bar.lane + 1), 0);
const END = BARS.reduce((most, bar) => Math.max(most, bar.end), DATA.summary.wall_seconds || 0) || 1;

// What tests that shared a sandbox used is known of them together.
const SHARED = (DATA.shared || []).map((it) => ({
  ...it, binary: DATA.binaries[it.binary],
  start: it.sandbox.started, end: it.sandbox.started + it.sandbox.wall,
}));
const cpuOf = (attempt) => (attempt.user || 0) + (attempt.system || 0);

/** The sandbox that an attempt at a test shared, as far as it is told. */
function sharedBy(test, attempt) {
  if (!attempt.shared) return undefined;
  return SHARED.find((it) => it.binary === test.binary && it.repetition === test.repetition
    && it.start <= attempt.started + 1e-6 && attempt.started <= it.end + 1e-6);
}

/** The bars that were running at the same time as this one, the longest of them first. */
function beside(bar) {
  return BARS
    .filter((other) => other.test !== bar.test && other.start < bar.end && other.end > bar.start)
    .map((other) => [other, Math.min(other.end, bar.end) - Math.max(other.start, bar.start)])
    .sort((a, b) => b[1] - a[1]);
}

(function head() {
  const { run, summary } = DATA;
  $("workspace").textContent = run.workspace;
  const when = new Date(run.started_at_unix_seconds * 1000);
  const item = (name, value) => el("span", {}, `${name} `, el("b", {}, value));
  const meta = [
    el("span", {}, el("b", {}, `${when.toISOString().slice(0, 10)} ${when.toISOString().slice(11, 16)} UTC`)),
    item("took", duration(summary.wall_seconds)),
    item("jobs", String(run.jobs)),
    run.profile ? item("profile", run.profile) : null,
    run.shuffle !== null ? item("shuffled, seed", String(run.shuffle)) : null,
    item("run", run.run),
    run.command_line.length ? el("code", {}, run.command_line.join(" ")) : null,
  ];
  $("meta").append(...meta.filter(Boolean));
  const ran = summary.passed + summary.failed;
  const outcome = $("outcome");
  outcome.classList.add(summary.failed ? "failed" : "passed");
  outcome.append(
    el("strong", {}, summary.failed
      ? `${summary.failed.toLocaleString("en")} of ${plural(ran, "test")} failed`
      : ran ? `${ran === 1 ? "The one test" : `All ${plural(ran, "test")}`} passed` : "No test was run"),
    el("span", {}, [
      summary.failed ? `${summary.passed.toLocaleString("en")} passed` : null,
      summary.flaky ? `${summary.flaky} flaky` : null,
      summary.ignored ? `${summary.ignored} ignored` : null,
      summary.not_reached ? `${summary.not_reached} not reached` : null,
      summary.filtered_out ? `${summary.filtered_out} filtered out` : null,
    ].filter(Boolean).join(" · ")),
  );
  for (const [name] of CLASSES) {
    const count = TESTS.filter((test) => test.class === name).length;
    if (!count) continue;
    const part = el("i", { class: name });
    part.style.flexGrow = count;
    $("share").append(part);
  }
})();
