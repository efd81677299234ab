// Curves of all experiments, a chart per figure. All charts share their horizontal range and their cursor.

const TITLES = {
  loss: 'Loss', ctc: 'CTC loss', ctc_per_label: 'CTC loss per label', contrastive: 'Contrastive loss',
  cross_entropy: 'Cross-entropy of masked frames', intermediate_ctc: 'CTC loss between blocks',
  diversity: 'Diversity loss', feature_penalty: 'Feature penalty', wer: 'Word error rate', cer: 'Character error rate', per: 'Phone error rate',
  accuracy: 'Accuracy', code_perplexity: 'Code perplexity', code_share: 'Share of codes in use',
  prob_perplexity: 'Probability perplexity', gamma: 'Penalty γ',
  grad_cosine: 'Cosine of ∇L_sup and ∇L_unsup on θ', grad_norm_sup: 'Norm of ∇L_sup on θ', grad_norm_unsup: 'Norm of ∇L_unsup on θ',
  learning_rate: 'Learning rate', grad_norm: 'Gradient norm', audio_seconds_per_second: 'Throughput (audio s per s)',
  data_wait_share: 'Share of time waiting for data', gumbel_temperature: 'Gumbel temperature',
  mask_share: 'Share of frames masked', infeasible: 'Share of infeasible transcripts',
  pseudo_ctc: 'CTC loss on pseudo-labels', pseudo_intermediate_ctc: 'CTC loss on pseudo-labels between blocks',
  pseudo_kept: 'Pseudo-labels: share kept', pseudo_confidence: 'Pseudo-labels: confidence',
  pseudo_cer: 'Pseudo-labels: character error rate', pseudo_cer_kept: 'Pseudo-labels kept: character error rate',
  pseudo_per: 'Pseudo-labels: phone error rate', pseudo_per_kept: 'Pseudo-labels kept: phone error rate',
  pseudo_length_ratio: 'Pseudo-labels: length beside transcripts', pseudo_empty: 'Pseudo-labels: share empty',
  pseudo_looping: 'Pseudo-labels: share that loops', pseudo_weight: 'Pseudo-labels: weight of the loss',
  pseudo_units_per_second: 'Pseudo-labels: units per second', labelled_looping: 'Transcripts: share that loops',
  labelled_units_per_second: 'Transcripts: units per second',
};
const ORDER = ['wer', 'cer', 'per', 'loss', 'ctc', 'contrastive', 'cross_entropy', 'accuracy', 'code_perplexity', 'gamma', 'grad_cosine',
  'grad_norm_sup', 'grad_norm_unsup', 'learning_rate', 'grad_norm', 'audio_seconds_per_second'];
const DASHES = [null, '6 3', '2 3', '9 3 2 3', '12 4', '1 4'];
const MOST_BORDERS = 40;
const SPACE = { left: 52, right: 10, top: 10, bottom: 24 };

const view = { axis: 'step', range: null, cursor: null, smooth: 0, log: false, hidden: new Set(), charts: [] };

/** Return {figure: [{experiment, name, dev, x: {step, hours}, y, phase}]}; dev/wer and wer share a chart. */
function families() {
  const found = new Map();
  page.experiments.forEach((experiment, place) => {
    const { steps, seconds, phases, series } = experiment.curves;
    for (const [name, [rows, values]] of Object.entries(series)) {
      const dev = name.startsWith('dev/');
      // Groups that all do the same (learning rates, mostly) are said once.
      const whole = dev ? undefined : series[name.split('/')[0]];
      const said = whole && whole[1] !== values && new Map(whole[0].map((row, k) => [row, whole[1][k]]));
      if (said && rows.every((row, k) => said.get(row) === values[k])) continue;
      const family = (dev ? name.slice(4) : name).split('/')[0];
      if (!found.has(family)) found.set(family, []);
      found.get(family).push({
        experiment: place, name, dev, y: values, phase: rows.map(row => phases[row]),
        x: { step: rows.map(row => steps[row]), hours: rows.map(row => (seconds[row] === null ? null : seconds[row] / 3600)) },
      });
    }
  });
  return found;
}

/** Return about `count` round numbers between two. */
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(n => n * power).find(n => n >= raw * 0.999) || raw;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

/** Exponential moving average over the points that are numbers. */
function smoothed(values, weight) {
  let [mean, mass] = [0, 0];
  return values.map(value => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

class Chart {
  constructor(family, lines) {
    this.family = family;
    this.lines = lines;
    this.title = TITLES[family] || family.replaceAll('_', ' ');
    this.svg = s('svg', { tabindex: '0', role: 'img', 'aria-label': this.summary() });
    this.tip = h('div', { class: 'tip', hidden: true });
    this.size = h('button', { type: 'button', 'aria-pressed': 'false', onclick: () => this.enlarge(), 'aria-label': `Enlarge ${this.title}` }, '⤢');
    this.node = h('figure', { class: 'card chart', 'data-figure': family },
      h('header', {}, h('h3', {}, this.title), this.size), this.svg, this.keys(), this.tip);
    for (const name of ['pointerdown', 'pointermove', 'pointerup', 'pointercancel', 'pointerleave']) {
      this.svg.addEventListener(name, event => this[name](event));
    }
    this.svg.addEventListener('dblclick', () => zoom(null));
    this.svg.addEventListener('keydown', event => this.key(event));
    this.svg.addEventListener('blur', () => moveCursor(null));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  summary() {
    const parts = this.lines.map(line => {
      const known = line.y.filter(value => value !== null);
      const who = page.experiments.length > 1 ? `${page.experiments[line.experiment].name}, ` : '';
      return `${who}${line.name}: ${known.length ? `from ${brief(known[0])} to ${brief(known.at(-1))}` : 'no finite value'}`;
    });
    return `${this.title}. ${parts.join('; ')}. Arrow keys move a cursor, plus and minus zoom, 0 shows everything.`;
  }

  /** Dashes tell a chart's figures apart; colours tell experiments apart, or figures if there is one experiment. */
  style(line) {
    const names = [...new Set(this.lines.map(other => other.name))];
    const place = names.indexOf(line.name);
    return { dash: line.dev ? null : DASHES[place % DASHES.length], own: colour(page.experiments.length > 1 ? line.experiment : place) };
  }

  keys() {
    const names = [...new Set(this.lines.map(line => line.name))];
    if (names.length < 2 && !names[0].startsWith('dev/')) return h('div', { class: 'keys' });
    return h('div', { class: 'keys' }, names.map(name => {
      const { dash, own } = this.style(this.lines.find(line => line.name === name));
      const stroke = page.experiments.length > 1 ? 'var(--ink)' : own;
      const key = s('svg', { viewBox: '0 0 24 8', 'aria-hidden': 'true', own: stroke },
        s('path', { d: 'M0 4H24', class: 'curve', 'stroke-dasharray': dash }),
        name.startsWith('dev/') && s('circle', { cx: 12, cy: 4, r: 3, class: 'mark' }));
      return h('span', {}, key, name);
    }));
  }

  enlarge() {
    const large = this.node.classList.toggle('large');
    this.size.setAttribute('aria-pressed', large);
    this.size.textContent = large ? '⤡' : '⤢';
  }

  shown() {
    return this.lines.filter(line => !view.hidden.has(line.experiment));
  }

  draw() {
    const { width, height } = this.svg.getBoundingClientRect();
    if (width < 80) return;
    const lines = this.shown().map(line => ({
      ...line, xs: line.x[view.axis], ys: view.smooth && !line.dev ? smoothed(line.y, view.smooth) : line.y,
    }));
    const [x0, x1] = view.range || wholeRange();
    let [low, high] = [Infinity, -Infinity];
    for (const line of lines) {
      line.xs.forEach((x, k) => {
        const y = line.ys[k];
        if (x === null || y === null || x < x0 || x > x1 || (view.log && y <= 0)) return;
        if (y < low) low = y;
        if (y > high) high = y;
      });
    }
    const parts = [];
    if (low > high) {
      this.scale = null;
      parts.push(s('text', { x: width / 2, y: height / 2, 'text-anchor': 'middle' }, 'nothing in this range'));
      this.svg.replaceChildren(...parts);
      return;
    }
    const by = view.log ? Math.log10 : value => value;
    let [bottom, top] = [by(low), by(high)];
    const margin = (top - bottom) * 0.06 || Math.abs(top) * 0.1 || 0.5;
    top += margin;
    bottom = !view.log && bottom >= 0 && bottom - margin < 0 ? 0 : bottom - margin;
    const px = x => SPACE.left + (x - x0) / (x1 - x0 || 1) * (width - SPACE.left - SPACE.right);
    const py = y => height - SPACE.bottom - (by(y) - bottom) / (top - bottom) * (height - SPACE.top - SPACE.bottom);
    this.scale = { px, py, width, height, x0, x1, lines };
    const levels = view.log ? this.decades(bottom, top) : ticks(bottom, top, height > 250 ? 7 : 4);
    for (const y of levels) {
      parts.push(s('line', { class: 'gridline', x1: SPACE.left, x2: width - SPACE.right, y1: py(y), y2: py(y) }),
        s('text', { x: SPACE.left - 6, y: py(y) + 4, 'text-anchor': 'end' }, brief(y)));
    }
    for (const x of ticks(x0, x1, Math.max(2, Math.floor(width / 75)))) {
      parts.push(s('text', { x: px(x), y: height - 7, 'text-anchor': 'middle' }, view.axis === 'step' ? brief(x) : `${brief(x)} h`));
    }
    if (page.experiments.length === 1 && lines.length) parts.push(...this.phases(lines[0], px, height, x0, x1));
    for (const line of lines) parts.push(...this.curve(line, px, py, x0, x1));
    this.svg.replaceChildren(...parts);
  }

  decades(bottom, top) {
    const found = [];
    for (let k = Math.floor(bottom); k <= top; k++) for (const n of [1, 2, 5]) found.push(n * 10 ** k);
    const inside = found.filter(y => Math.log10(y) >= bottom && Math.log10(y) <= top);
    const tens = inside.filter(y => /^1(e|$|0*$)/.test(String(y)) || Math.abs(Math.log10(y) % 1) < 1e-9);
    if (inside.length <= 8) return inside.length ? inside : [10 ** ((bottom + top) / 2)];
    return tens.filter((_, k) => k % Math.ceil(tens.length / 8) === 0);
  }

  phases(line, px, height, x0, x1) {
    const starts = line.phase.flatMap((phase, k) => (k && phase !== line.phase[k - 1] ? [line.xs[k]] : []));
    const inside = starts.filter(x => x > x0 && x < x1);
    // Phases that alternate by the hundred would hatch the whole chart; zooming in brings them back.
    return (inside.length > MOST_BORDERS ? [] : inside)
      .map(x => s('line', { class: 'phase', x1: px(x), x2: px(x), y1: SPACE.top, y2: height - SPACE.bottom }));
  }

  curve(line, px, py, x0, x1) {
    const { dash, own } = this.style(line);
    const path = values => {
      // Of many points in one column of pixels only the first, lowest, highest and last can be seen.
      let [text, pen, column, kept] = ['', false, null, []];
      const flush = () => {
        if (!kept.length) return;
        const extremes = [kept[0], kept.reduce((a, b) => (b[1] < a[1] ? b : a)), kept.reduce((a, b) => (b[1] > a[1] ? b : a)), kept.at(-1)];
        for (const [x, y] of kept.length > 4 ? extremes : kept) {
          text += `${pen ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`;
          pen = true;
        }
        kept = [];
      };
      values.forEach((y, k) => {
        const x = line.xs[k];
        if (x === null || y === null || (view.log && y <= 0)) { flush(); pen = false; return; }
        // One point beyond either edge, so that the line runs out of the picture.
        if ((line.xs[k + 1] ?? x) < x0 || (line.xs[k - 1] ?? x) > x1) return;
        const at = px(Math.min(Math.max(x, x0 - (x1 - x0)), x1 + (x1 - x0)));
        if (Math.floor(at) !== column) { flush(); column = Math.floor(at); }
        kept.push([at, py(y)]);
      });
      flush();
      return text;
    };
    const clip = `clip-${this.family}`;
    const { width, height } = this.scale;
    const group = s('g', { own, 'clip-path': `url(#${CSS.escape(clip)})` });
    const box = s('clipPath', { id: clip }, s('rect', { x: SPACE.left, y: 0, width: width - SPACE.left - SPACE.right, height }));
    if (line.ys !== line.y) group.append(s('path', { d: path(line.y), class: 'curve faint' }));
    group.append(s('path', { d: path(line.ys), class: 'curve', 'stroke-dasharray': dash }));
    const inside = line.xs.map((x, k) => k).filter(k => line.xs[k] !== null && line.ys[k] !== null && line.xs[k] >= x0 && line.xs[k] <= x1 && !(view.log && line.ys[k] <= 0));
    if (inside.length === 1 || (line.dev && inside.length <= 60)) {
      for (const k of inside) group.append(s('circle', { class: 'mark', cx: px(line.xs[k]).toFixed(1), cy: py(line.ys[k]).toFixed(1), r: 2.8 }));
    }
    return [box, group];
  }

  /** Return the value on the horizontal axis under the pointer. */
  under(event) {
    const { x0, x1, width } = this.scale;
    const at = event.clientX - this.svg.getBoundingClientRect().left;
    return x0 + Math.min(1, Math.max(0, (at - SPACE.left) / (width - SPACE.left - SPACE.right))) * (x1 - x0);
  }

  pointerdown(event) {
    if (!this.scale || event.button !== 0) return;
    this.from = this.under(event);
    this.svg.setPointerCapture(event.pointerId);
  }

  pointermove(event) {
    if (!this.scale) return;
    const x = this.under(event);
    moveCursor(x, this);
    if (this.from === undefined) return;
    const { px, height } = this.scale;
    this.svg.querySelector('.chosen')?.remove();
    this.svg.append(s('rect', { class: 'chosen', x: Math.min(px(x), px(this.from)), width: Math.abs(px(x) - px(this.from)), y: SPACE.top, height: height - SPACE.top - SPACE.bottom }));
  }

  pointerup(event) {
    if (!this.scale || this.from === undefined) return;
    const [from, to] = [this.from, this.under(event)];
    this.from = undefined;
    this.svg.querySelector('.chosen')?.remove();
    if (Math.abs(this.scale.px(to) - this.scale.px(from)) > 8) zoom([Math.min(from, to), Math.max(from, to)], this);
  }

  pointercancel() {
    this.from = undefined;
    this.svg.querySelector('.chosen')?.remove();
  }

  pointerleave() {
    if (this.from === undefined) moveCursor(null);
  }

  key(event) {
    if (!this.scale || event.ctrlKey || event.metaKey || event.altKey) return;
    const { x0, x1, lines } = this.scale;
    const at = view.cursor ?? (x0 + x1) / 2;
    if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') {
      const right = event.key === 'ArrowRight';
      const places = lines.flatMap(line => line.xs).filter(x => x !== null && x >= x0 && x <= x1 && (right ? x > at : x < at));
      if (places.length) moveCursor(right ? Math.min(...places) : Math.max(...places), this);
      announce(this.tip.textContent);
    } else if (event.key === '+' || event.key === '=') zoom([at - (x1 - x0) / 4, at + (x1 - x0) / 4], this);
    else if (event.key === '-') zoom([at - (x1 - x0), at + (x1 - x0)], this);
    else if (event.key === '0' || event.key === 'Escape') zoom(null);
    else return;
    event.preventDefault();
  }

  /** Draw the shared cursor; the chart that the pointer is on says the values. */
  mark(x, speaks) {
    this.svg.querySelector('.cursor')?.remove();
    this.tip.hidden = true;
    if (x === null || !this.scale) return;
    const { px, width, height, lines, x0, x1 } = this.scale;
    if (x < x0 || x > x1) return;
    this.svg.append(s('line', { class: 'cursor', x1: px(x), x2: px(x), y1: SPACE.top, y2: height - SPACE.bottom }));
    if (!speaks) return;
    const said = [];
    let phase = '';
    for (const line of lines) {
      let place = -1;
      line.xs.forEach((at, k) => {
        if (at !== null && line.ys[k] !== null && (place < 0 || Math.abs(at - x) < Math.abs(line.xs[place] - x))) place = k;
      });
      if (place < 0) continue;
      phase = line.phase[place];
      const who = page.experiments.length > 1 ? `${page.experiments[line.experiment].name} ` : '';
      said.push(h('p', { own: this.style(line).own }, h('span', {}, h('i'), `${who}${line.name}`), h('span', {}, brief(line.y[place]))));
    }
    const place = view.axis === 'step' ? `step ${brief(Math.round(x))}` : `${x.toFixed(2)} h`;
    this.tip.replaceChildren(h('p', { class: 'head' }, `${place}${phase ? `, ${phase}` : ''}`), ...said);
    this.tip.hidden = false;
    const left = px(x) + 24;
    this.tip.style.top = '2.4rem';
    this.tip.style.left = left + this.tip.offsetWidth < width ? `${left}px` : `${Math.max(0, px(x) - this.tip.offsetWidth)}px`;
  }
}

function moveCursor(x, speaker) {
  view.cursor = x;
  for (const chart of view.charts) chart.mark(x, chart === speaker);
}
