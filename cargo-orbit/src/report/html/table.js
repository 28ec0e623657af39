// The table of tests: sorted, filtered, and drawn only where one looks.
const table = (() => {
  const ROW = 36, rows = $("rows"), search = $("search");
  const rank = { failed: 0, flaky: 1, passed: 2, "not-reached": 3, ignored: 4 };
  const columns = [
    ["result", "Result", (a, b) => rank[a.class] - rank[b.class] || a.word.localeCompare(b.word) || b.wall - a.wall],
    ["name", "Test", (a, b) => a.label.localeCompare(b.label) || a.index - b.index],
    ["time", "Time", (a, b) => b.wall - a.wall, true],
    ["cpu", "CPU", (a, b) => (b.cpu || 0) - (a.cpu || 0), true],
    ["memory", "Memory", (a, b) => (b.memory || 0) - (a.memory || 0), true],
    ["start", "Started", (a, b) => a.started === b.started ? 0 : a.started - b.started, true],
  ];
  const shownClasses = new Set();
  let sorted = "result", backwards = false, shown = TESTS, cursor = 0, first = -1, last = -1;

  // What is searched, made when it is first asked for.
  const texts = [];
  function text(test) {
    return texts[test.index] ??= [test.label, test.word, ...test.attempts.flatMap((attempt) => [attempt.phrase, attempt.stdout, attempt.stderr])]
      .filter(Boolean).join("\n").toLowerCase();
  }

  const heads = columns.map(([id, title, , number]) => {
    const button = el("button", { type: "button", onclick: () => sort(id) }, title);
    const head = el("div", { role: "columnheader", class: number ? "number" : "", "data-column": id }, button);
    $("heads").append(head);
    return head;
  });

  for (const [name, title] of CLASSES) {
    const count = TESTS.filter((test) => test.class === name).length;
    if (!count) continue;
    $("chips").append(el("button", {
      type: "button", "aria-pressed": "false", "data-class": name,
      onclick(event) {
        const on = !shownClasses.delete(name);
        if (on) shownClasses.add(name);
        event.currentTarget.setAttribute("aria-pressed", String(on));
        refresh();
      },
    }, el("span", { class: `dot ${name}` }), el("b", {}, count.toLocaleString("en")), title));
  }

  function sort(id) {
    backwards = sorted === id && !backwards;
    sorted = id;
    refresh();
  }

  function refresh() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const compare = columns.find(([id]) => id === sorted)[2];
    const sign = backwards ? -1 : 1;
    shown = TESTS
      .filter((test) => (!shownClasses.size || shownClasses.has(test.class)) && words.every((word) => text(test).includes(word)))
      .sort((a, b) => sign * compare(a, b) || a.index - b.index);
    for (const head of heads) {
      const mine = head.dataset.column === sorted;
      // The figures' first order is the largest first.
      const down = ["time", "cpu", "memory"].includes(sorted) !== backwards;
      head.setAttribute("aria-sort", mine ? (down ? "descending" : "ascending") : "none");
    }
    $("shown").textContent = shown.length === TESTS.length
      ? TESTS.length.toLocaleString("en") : `${shown.length.toLocaleString("en")} of ${TESTS.length.toLocaleString("en")}`;
    $("empty").hidden = shown.length > 0;
    $("table").setAttribute("aria-rowcount", shown.length + 1);
    rows.style.height = `${shown.length * ROW}px`;
    cursor = 0;
    first = -1;
    draw();
  }

  function row(test, position) {
    const made = el("div", {
      class: "row", role: "row", "aria-rowindex": position + 2, "data-index": test.index,
      tabindex: position === cursor ? 0 : -1, "aria-selected": String(details.current() === test.index),
      onclick: () => { cursor = position; details.open(test.index); },
    },
    el("div", { role: "gridcell" }, el("span", { class: `badge ${test.class}` }, test.word)),
    el("div", { role: "gridcell", class: "name", title: test.label }, el("i", {}, test.binary), test.name,
      test.remarks.length ? el("em", {}, test.remarks.join(", ")) : null),
    ...[
      test.last ? duration(test.wall) : "–", test.cpu === undefined || !test.last ? "–" : duration(test.cpu), bytes(test.memory),
      test.last ? `+${duration(test.attempts[0].started)}` : "–",
    ].map((value) => el("div", { role: "gridcell", class: "number" }, value)));
    made.style.top = `${position * ROW}px`;
    return made;
  }

  function draw(focus) {
    const top = rows.getBoundingClientRect().top;
    let start = Math.max(0, Math.floor(-top / ROW) - 8);
    let end = Math.min(shown.length, Math.ceil((innerHeight - top) / ROW) + 8);
    if (end <= start) { end = Math.min(shown.length, 30); start = 0; }
    if (focus === undefined && start === first && end === last) return;
    const had = rows.contains(document.activeElement);
    first = start; last = end;
    rows.replaceChildren(...shown.slice(start, end).map((test, n) => row(test, start + n)));
    if (had || focus) rows.querySelector('[tabindex="0"]')?.focus({ preventScroll: true });
  }

  function move(to) {
    cursor = Math.max(0, Math.min(shown.length - 1, to));
    const top = rows.getBoundingClientRect().top + cursor * ROW;
    if (top < 100) scrollBy(0, top - 100);
    else if (top + ROW > innerHeight - 8) scrollBy(0, top + ROW - innerHeight + 8);
    draw(true);
  }

  rows.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(innerHeight / ROW) - 4);
    const keys = {
      ArrowDown: () => move(cursor + 1), ArrowUp: () => move(cursor - 1), PageDown: () => move(cursor + page), PageUp: () => move(cursor - page),
      Home: () => move(0), End: () => move(shown.length - 1),
      Enter: () => details.open(shown[cursor].index), " ": () => details.open(shown[cursor].index),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  search.addEventListener("input", refresh);
  addEventListener("scroll", () => draw(), { passive: true });
  addEventListener("resize", () => draw());
  addEventListener("keydown", (event) => {
    const typing = event.target.matches("input");
    if (event.key === "/" && !typing) { event.preventDefault(); search.focus(); search.select(); }
    if (event.key === "Escape" && typing) { search.value = ""; refresh(); search.blur(); }
  });

  return {
    start: refresh,
    /** Marks the test that is open; where it is not in sight, nothing scrolls. */
    mark() { first = -1; draw(); },
    /** The test so many places from this one, as the table is sorted now. */
    from(index, step) {
      const position = shown.findIndex((test) => test.index === index);
      const to = shown[position + step];
      if (to) cursor = position + step;
      return to ? to.index : null;
    },
    focus() { draw(true); },
  };
})();
