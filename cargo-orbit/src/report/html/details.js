// One test: how it ended, what it used, what it said, and what ran beside it.
const details = (() => {
  const drawer = $("drawer"), body = $("drawer-body");
  const SHOWN_BESIDE = 12;
  let current = null, before = null;

  // Of escape sequences the report has left nothing but colours.
  function ansi(text) {
    const pre = el("pre", { tabindex: 0 });
    let on = [];
    for (const part of text.split(/(\x1b\[[0-9;:]*m)/)) {
      if (!part) continue;
      if (!part.startsWith("\x1b[")) {
        pre.append(on.length ? el("span", { class: on.map((code) => `a${code}`).join(" ") }, part) : part);
        continue;
      }
      const codes = part.slice(2, -1).split(/[;:]/).map(Number);
      for (let n = 0; n < codes.length; n++) {
        const code = codes[n];
        if (code === 0) on = [];
        else if (code === 38 || code === 48) n += codes[n + 1] === 5 ? 2 : 4;
        else if (code === 39) on = on.filter((code) => code < 30);
        else if (code === 22) on = on.filter((code) => code > 2);
        else if (code <= 4) on = [...on, code];
        else if (code >= 30 && code <= 37 || code >= 90 && code <= 97) on = [...on.filter((code) => code < 30), code];
      }
    }
    return pre;
  }

  function stream(title, text) {
    if (!text) return null;
    const plain = text.replace(/\x1b\[[0-9;:]*m/g, "");
    const copy = el("button", {
      type: "button", class: "copy",
      onclick: async (event) => {
        const button = event.currentTarget;
        try { await navigator.clipboard.writeText(plain); button.textContent = "Copied"; } catch { button.textContent = "Not allowed"; }
      },
    }, "Copy");
    return el("div", { class: "stream" }, el("div", { class: "stream-head" }, title, copy), ansi(text));
  }

  function told(name, values, more) {
    if (!values) return [];
    const items = values.map((value, n) => el("li", {}, el("span", {}, n ? "" : name), el("code", {}, value)));
    if (more) items.push(el("li", {}, el("span", {}), el("span", {}, `and ${more} more`)));
    return items;
  }

  function attempt(test, it, number) {
    const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
    const shared = sharedBy(test, it);
    const usage = (it, of) => [
      fact(`CPU${of}`, duration(cpuOf(it))), fact(`CPU, kernel${of}`, duration(it.system || 0)), fact(`Memory, peak${of}`, bytes(it.memory)),
    ];
    const remarks = [
      ...told("left behind", it.leaked), ...told("not let out to", it.denied), ...told("wrote", it.wrote, it.wrote_more),
      ...told("note", it.notes), ...told("kept", it.kept && [`cargo orbit shell ${it.kept}`]),
    ];
    return el("section", { class: "attempt" },
      test.attempts.length > 1 ? el("div", { class: "attempt-head" }, `Attempt ${number + 1} of ${test.attempts.length}`,
        el("span", { class: `badge ${it.word === "PASS" ? "passed" : "failed"}` }, it.word)) : null,
      it.word === "PASS" ? null : el("p", { class: "phrase" }, it.phrase),
      el("dl", { class: "facts" },
        fact("Time", duration(it.wall)), fact("Started", `+${duration(it.started)}`), fact("Job", String(it.lane + 1)),
        ...(it.shared ? shared ? usage(shared.sandbox, `, of all ${shared.tests}`) : [] : usage(it, ""))),
      shared ? el("p", { class: "dim" }, `It shared a sandbox: what was used${shared.sandbox.wrote ? " and written" : ""} is that of ${plural(shared.tests, "test")} together.`) : null,
      shared && shared.sandbox.wrote ? el("ul", { class: "told" }, ...told("together wrote", shared.sandbox.wrote, shared.sandbox.wrote_more)) : null,
      remarks.length ? el("ul", { class: "told" }, ...remarks) : null,
      stream("Standard output", it.stdout), stream("Standard error", it.stderr),
      it.stdout || it.stderr ? null : el("p", { class: "dim" }, "It wrote nothing."));
  }

  function neighbours(test) {
    const bars = BARS.filter((bar) => bar.test === test);
    const all = new Map();
    for (const bar of bars) for (const [other, overlap] of beside(bar)) all.set(other.test, (all.get(other.test) || 0) + overlap);
    if (!all.size) return null;
    const list = [...all].sort((a, b) => b[1] - a[1]);
    return el("section", { class: "beside" }, el("h4", {}, `Ran beside ${plural(list.length, "other test")}`),
      ...list.slice(0, SHOWN_BESIDE).map(([other, overlap]) => el("button", { type: "button", onclick: () => open(other.index) },
        el("span", { class: `dot ${other.class}` }), el("span", {}, other.label), el("span", {}, duration(overlap)))),
      list.length > SHOWN_BESIDE ? el("p", { class: "dim" }, `and ${list.length - SHOWN_BESIDE} more`) : null);
  }

  function open(index) {
    const test = TESTS[index];
    if (!test) return;
    if (drawer.hidden) before = document.activeElement;
    current = index;
    const why = test.class === "ignored" ? "It is marked with #[ignore]." : "The run ended before its turn.";
    body.replaceChildren(
      el("span", { class: `badge ${test.class}` }, test.word),
      el("h3", { id: "drawer-name", tabindex: -1 }, test.name),
      el("p", { class: "binary" }, test.binary),
      ...(test.attempts.length ? test.attempts.map((it, number) => attempt(test, it, number)).reverse() : [el("p", { class: "phrase" }, why)]),
      ...[neighbours(test)].filter(Boolean));
    drawer.hidden = false;
    body.scrollTop = 0;
    $("drawer-name").focus({ preventScroll: true });
    try { history.replaceState(null, "", `#test-${index}`); } catch { /* not everywhere from file:// */ }
    table.mark();
    timeline.draw();
  }

  function close() {
    if (drawer.hidden) return;
    drawer.hidden = true;
    current = null;
    try { history.replaceState(null, "", "#"); } catch { /* as above */ }
    table.mark();
    timeline.draw();
    if (before && before.isConnected && before !== document.body) before.focus({ preventScroll: true }); else table.focus();
  }

  function step(by) {
    const to = current === null ? null : table.from(current, by);
    if (to !== null) open(to);
  }

  $("close").addEventListener("click", close);
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  addEventListener("keydown", (event) => {
    if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey || drawer.hidden) return;
    if (event.key === "Escape") close();
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
  });
  function go() {
    const wanted = /^#test-(\d+)$/.exec(location.hash);
    if (wanted) open(Number(wanted[1]));
  }
  addEventListener("hashchange", go);
  return { open, go, current: () => current };
})();
timeline.start();
table.start();
details.go();
