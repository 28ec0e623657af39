// The timeline: a lane for each job, and under them what memory and processors were used.
const timeline = (() => {
  const canvas = $("timeline"), tip = $("tip"), context = canvas.getContext("2d");
  const AXIS = 26, GAP = 14, STRIP = 46, LABEL = 62;
  const lane = LANES <= 10 ? 26 : LANES <= 24 ? 18 : LANES <= 64 ? 10 : 6;
  const height = AXIS + LANES * lane + 2 * (GAP + STRIP) + 6;
  // Where thousands are drawn over each other, what did not pass stays in sight.
  const LAYERS = ["passed", "flaky", "failed"].flatMap((name) => BARS.filter((bar) => bar.class === name));
  let from = 0, to = END, over = null, dragged = null, colour = {}, width = 0;

  $("timeline-hint").textContent =
    `${plural(LANES, "lane")}, drag to zoom, click a bar for its test`;

  function colours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["ink", "soft", "faint", "line", "lane", "accent", "panel", "bar-ink", "memory", "cpu",
      "bar-passed", "bar-flaky", "bar-failed", "accent-ground"]) {
      colour[name] = style.getPropertyValue(`--${name}`).trim();
    }
    colour.sans = style.getPropertyValue("--sans");
    colour.mono = style.getPropertyValue("--mono");
  }

  const x = (time) => LABEL + (time - from) / (to - from) * (width - LABEL);
  const time = (px) => from + (px - LABEL) / (width - LABEL) * (to - from);

  // What was used over time, as steps. Of tests that shared a sandbox it is known of them together, for the time of it.
  const used = [...BARS.filter((bar) => !bar.attempt.shared), ...SHARED.map((it) => ({ ...it, attempt: it.sandbox }))];
  function steps(amount) {
    const changes = [];
    for (const { attempt, start, end } of used) {
      const much = amount(attempt, Math.max(end - start, 1e-6));
      if (much) changes.push([start, much], [end, -much]);
    }
    changes.sort((a, b) => a[0] - b[0]);
    let level = 0, most = 0;
    const points = [];
    for (const [at, change] of changes) {
      level = Math.max(0, level + change);
      most = Math.max(most, level);
      const last = points[points.length - 1];
      if (last && last[0] === at) last[1] = level; else points.push([at, level]);
    }
    return { points, most };
  }
  const memory = steps((attempt) => attempt.memory || 0);
  const cpu = steps((attempt, wall) => cpuOf(attempt) / wall);
  const cores = (most) => `${most.toFixed(1)} core${most === 1 ? "" : "s"}`;

  function tick(span) {
    const rough = span / Math.max(2, (width - LABEL) / 110);
    const power = 10 ** Math.floor(Math.log10(rough));
    return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  }

  function axis() {
    const step = tick(to - from);
    context.font = `11px ${colour.sans}`;
    context.textBaseline = "middle";
    context.textAlign = "center";
    for (let at = Math.ceil(from / step) * step; at <= to + step / 1e6; at += step) {
      const px = Math.round(x(at)) + .5;
      context.strokeStyle = colour.line;
      context.beginPath(); context.moveTo(px, AXIS - 6); context.lineTo(px, height); context.stroke();
      context.fillStyle = colour.faint;
      const decimals = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
      const text = to >= 1 && decimals <= 3 ? `${at.toFixed(decimals)} s` : step >= 1 ? `${Math.round(at)} s` : step >= .001 ? `${Math.round(at * 1e3)} ms` : `${Math.round(at * 1e6)} µs`;
      context.textAlign = px > width - 24 ? "right" : "center";
      context.fillText(text, Math.min(px, width), AXIS / 2 - 2);
    }
  }

  function strip(top, { points, most }, fill, name, worth, mean) {
    context.fillStyle = colour.faint;
    context.font = `11px ${colour.sans}`;
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    context.fillText(name, 0, top + 12);
    context.fillStyle = colour.soft;
    context.fillText(most ? worth(most) : "–", 0, top + 27);
    context.strokeStyle = colour.line;
    context.beginPath(); context.moveTo(LABEL, top + STRIP + .5); context.lineTo(width, top + STRIP + .5); context.stroke();
    if (!most) return;
    // One value for each pixel: the most that was used in its time, or of processors the mean.
    const columns = Math.ceil(width - LABEL), values = new Float64Array(columns);
    let level = 0, next = 0;
    for (let n = 0; n < columns; n++) {
      const start = time(LABEL + n), end = time(LABEL + n + 1);
      while (next < points.length && points[next][0] <= start) level = points[next++][1];
      let value = level, sum = 0, since = start;
      while (next < points.length && points[next][0] < end) {
        sum += level * (points[next][0] - since);
        [since, level] = points[next++];
        value = Math.max(value, level);
      }
      values[n] = mean ? (sum + level * (end - since)) / (end - start) : value;
    }
    const y = (level) => top + STRIP - level / most * (STRIP - 4);
    context.save();
    context.beginPath(); context.rect(LABEL, top - 2, width - LABEL, STRIP + 3); context.clip();
    context.beginPath();
    context.moveTo(LABEL - 2, y(values[0]));
    values.forEach((value, n) => { context.lineTo(LABEL + n, y(value)); context.lineTo(LABEL + n + 1, y(value)); });
    context.strokeStyle = fill; context.lineWidth = 1.25; context.stroke();
    context.lineTo(width, y(0)); context.lineTo(LABEL - 2, y(0)); context.closePath();
    context.globalAlpha = .22; context.fillStyle = fill; context.fill();
    context.restore();
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    width = canvas.clientWidth;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    axis();
    for (let n = 0; n < LANES; n++) {
      const top = AXIS + n * lane;
      context.fillStyle = colour.lane;
      context.globalAlpha = .75;
      context.fillRect(LABEL, top + 1, width - LABEL, lane - 2);
      context.globalAlpha = 1;
      if (lane >= 16 || n % 4 === 0) {
        context.fillStyle = colour.faint;
        context.font = `11px ${colour.sans}`;
        context.textAlign = "left"; context.textBaseline = "middle";
        context.fillText(`job ${n + 1}`, 0, top + lane / 2);
      }
    }
    context.save();
    context.beginPath(); context.rect(LABEL, 0, width - LABEL, height); context.clip();
    const selected = details.current();
    for (const bar of LAYERS) {
      if (bar.end < from || bar.start > to) continue;
      const left = x(bar.start), wide = Math.max(x(bar.end) - left - (lane > 8 ? 1 : 0), bar.class === "passed" ? 1.5 : 2.5);
      const top = AXIS + bar.lane * lane + (lane > 8 ? 3 : 1), tall = lane - (lane > 8 ? 6 : 2);
      context.fillStyle = colour[`bar-${bar.class}`];
      context.beginPath();
      context.roundRect(left, top, wide, tall, Math.min(4, wide / 2, tall / 2));
      context.fill();
      if (bar === over || bar.test.index === selected) {
        context.strokeStyle = colour.ink; context.lineWidth = 1.5; context.stroke(); context.lineWidth = 1;
      }
      if (wide > 46 && lane >= 16) {
        const shown = Math.max(left, LABEL), end = Math.min(left + wide, width);
        if (end - shown > 40) {
          context.save();
          context.beginPath(); context.rect(shown, top, end - shown - 5, tall); context.clip();
          context.fillStyle = bar.class === "passed" ? colour["bar-ink"] : bar.class === "failed" ? "#fff" : "#2c1e00";
          context.font = `11px ${colour.mono}`; context.textAlign = "left"; context.textBaseline = "middle";
          context.fillText(bar.test.name.split("::").pop(), shown + 7, top + tall / 2 + .5);
          context.restore();
        }
      }
    }
    if (dragged) {
      context.fillStyle = colour.accent; context.globalAlpha = .16;
      context.fillRect(Math.min(...dragged), 0, Math.abs(dragged[1] - dragged[0]), height);
      context.globalAlpha = 1;
    }
    context.restore();
    const under = AXIS + LANES * lane + GAP;
    strip(under, memory, colour.memory, "memory", bytes);
    strip(under + STRIP + GAP, cpu, colour.cpu, "CPU", cores, true);
  }

  function at(px, py) {
    const row = Math.floor((py - AXIS) / lane);
    if (row < 0 || row >= LANES) return null;
    let best = null, nearest = 4;
    for (const bar of BARS) {
      if (bar.lane !== row) continue;
      const left = x(bar.start), right = Math.max(x(bar.end), left + 1.5);
      const away = px < left ? left - px : px > right ? px - right : 0;
      if (away < nearest) { nearest = away; best = bar; }
    }
    return best;
  }

  function point(bar, px, py) {
    if (bar !== over) { over = bar; draw(); }
    canvas.classList.toggle("over", !!bar);
    tip.hidden = !bar;
    if (!bar) return;
    const others = beside(bar).length;
    tip.replaceChildren(
      el("b", {}, bar.test.name),
      el("span", {}, bar.test.binary),
      el("span", {}, `${bar.attempt.phrase}${bar.test.attempts.length > 1 ? `, attempt ${bar.number + 1} of ${bar.test.attempts.length}` : ""}`),
      el("span", {}, [duration(bar.attempt.wall), ...(bar.attempt.shared ? [] : [`CPU ${duration(cpuOf(bar.attempt))}`, bytes(bar.attempt.memory)])].join(" · ")),
      el("span", {}, others ? `beside ${plural(others, "other test")}` : "beside no other"),
    );
    tip.style.left = `${Math.max(8, Math.min(px + 34, width - tip.offsetWidth + 10))}px`;
    tip.style.top = `${py + 18}px`;
    $("timeline-said").textContent = `${bar.test.label}: ${bar.attempt.phrase}, ${duration(bar.attempt.wall)}`;
  }

  function zoom(start, end) {
    const least = Math.max(END / 20000, 1e-5);
    const span = Math.min(END, Math.max(least, end - start));
    from = Math.max(0, Math.min(start, END - span));
    to = from + span;
    draw();
  }
  const scale = (factor, middle = (from + to) / 2) => zoom(middle - (middle - from) * factor, middle + (to - middle) * factor);

  canvas.addEventListener("pointermove", (event) => {
    if (dragged) { dragged[1] = event.offsetX; tip.hidden = true; draw(); return; }
    point(at(event.offsetX, event.offsetY), event.offsetX, event.offsetY);
  });
  canvas.addEventListener("pointerleave", () => { if (!dragged) point(null); });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    dragged = [event.offsetX, event.offsetX];
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!dragged) return;
    const [a, b] = [Math.min(...dragged), Math.max(...dragged)];
    dragged = null;
    if (b - a > 6) { zoom(time(a), time(b)); return; }
    const bar = at(event.offsetX, event.offsetY);
    draw();
    if (bar) details.open(bar.test.index);
  });
  canvas.addEventListener("pointercancel", () => { dragged = null; draw(); });
  canvas.addEventListener("dblclick", () => zoom(0, END));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    scale(event.deltaY > 0 ? 1.25 : .8, time(event.offsetX));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const lanes = (step) => {
      const now = over || BARS[0], middle = (now.start + now.end) / 2;
      for (let row = now.lane + step; row >= 0 && row < LANES; row += step) {
        const there = BARS.filter((bar) => bar.lane === row);
        if (!there.length) continue;
        return there.reduce((best, bar) => Math.abs((bar.start + bar.end) / 2 - middle) < Math.abs((best.start + best.end) / 2 - middle) ? bar : best);
      }
      return now;
    };
    const along = (step) => {
      if (!over) return BARS[0];
      const there = BARS.filter((bar) => bar.lane === over.lane);
      return there[Math.max(0, Math.min(there.length - 1, there.indexOf(over) + step))];
    };
    const keys = {
      ArrowRight: () => along(1), ArrowLeft: () => along(-1), ArrowDown: () => lanes(1), ArrowUp: () => lanes(-1),
      "+": () => scale(.6), "=": () => scale(.6), "-": () => scale(1 / .6), "0": () => zoom(0, END),
      Enter: () => over && details.open(over.test.index), Escape: () => point(null),
    };
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || !BARS.length) return;
    event.preventDefault();
    const bar = act();
    if (bar && bar.test) {
      if (bar.start < from || bar.end > to) zoom(bar.start - (to - from) / 2, bar.start + (to - from) / 2);
      point(bar, x(Math.max(bar.start, from)), AXIS + (bar.lane + 1) * lane);
    }
  });
  $("zoom-in").addEventListener("click", () => scale(.5));
  $("zoom-out").addEventListener("click", () => scale(2));
  $("zoom-all").addEventListener("click", () => zoom(0, END));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { colours(); draw(); });
  canvas.setAttribute("aria-label", [
    `${plural(BARS.length, "bar")}, one for each time a test was run`,
    memory.most ? `memory, at most ${bytes(memory.most)}` : null, cpu.most ? `CPU, at most ${cores(cpu.most)}` : null,
  ].filter(Boolean).join("; "));
  return { draw, start() { colours(); new ResizeObserver(draw).observe(canvas.parentElement); draw(); } };
})();
