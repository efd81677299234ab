// The experiments at a glance, their curves' controls, the tables of results and the dots with intervals.

/** The horizontal range of all visible curves. */
function wholeRange() {
  let [low, high] = [Infinity, -Infinity];
  page.experiments.forEach((experiment, place) => {
    if (view.hidden.has(place)) return;
    const { steps, seconds } = experiment.curves;
    for (const x of view.axis === 'step' ? steps : seconds.map(second => (second === null ? null : second / 3600))) {
      if (x === null) continue;
      if (x < low) low = x;
      if (x > high) high = x;
    }
  });
  if (low > high) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

/** Show a horizontal range in all charts; null shows everything. */
function zoom(range, speaker) {
  const [low, high] = wholeRange();
  if (range) {
    range = [Math.max(low, range[0]), Math.min(high, range[1])];
    if (range[0] <= low && range[1] >= high) range = null;
    else if (range[1] - range[0] < (high - low) * 1e-4) return;
  }
  view.range = range;
  redraw();
  if (view.cursor !== null) moveCursor(view.cursor, speaker);
}

function redraw() {
  byId('zoom-out').disabled = view.range === null;
  memory.set('view', { axis: view.axis, range: view.range, smooth: view.smooth, log: view.log, hidden: [...view.hidden] });
  for (const chart of view.charts) chart.draw();
}

function showCurves() {
  const section = byId('curves');
  Object.assign(view, memory.get('view', {}));
  view.hidden = new Set([...view.hidden].filter(place => place < page.experiments.length));
  const steady = [];
  const found = [...families()].sort(([a], [b]) => {
    const rank = name => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
    return rank(a) - rank(b) || a.localeCompare(b);
  });
  for (const [family, lines] of found) {
    const known = lines.flatMap(line => line.y).filter(value => value !== null);
    if (known.length > 1 && known.every(value => value === known[0])) steady.push(`${TITLES[family] || family} ${brief(known[0])}`);
    else view.charts.push(new Chart(family, lines));
  }
  if (!found.length) {
    section.append(h('p', { class: 'notice' }, 'No metrics.jsonl with rows yet.'));
    return;
  }
  const legend = h('div', { class: 'legend', role: 'group', 'aria-label': 'Experiments shown' },
    page.experiments.map((experiment, place) => h('button', {
      type: 'button', 'aria-pressed': String(!view.hidden.has(place)),
      onclick: event => {
        if (!view.hidden.delete(place)) view.hidden.add(place);
        event.currentTarget.setAttribute('aria-pressed', String(!view.hidden.has(place)));
        redraw();
      },
    }, swatch(place), experiment.name)));
  const smooth = h('input', { type: 'range', min: '0', max: '0.98', step: '0.02', value: view.smooth,
    oninput: event => { view.smooth = Number(event.target.value); redraw(); } });
  const log = h('input', { type: 'checkbox', onchange: event => { view.log = event.target.checked; redraw(); } });
  log.checked = view.log;
  section.append(
    h('div', { class: 'bar' },
      page.experiments.length > 1 && legend,
      choice('Against', [['step', 'updates'], ['hours', 'training hours']], view.axis, value => { view.axis = value; view.range = null; redraw(); }),
      h('label', {}, 'Smooth', smooth),
      h('label', {}, log, 'Logarithmic'),
      h('button', { type: 'button', id: 'zoom-out', disabled: view.range === null, onclick: () => zoom(null) }, 'Show everything')),
    h('p', { class: 'quiet' }, 'Drag over a chart to zoom, double-click to zoom out. With the keyboard: arrows, + and −, 0. Dots are measured on the dev sets.'),
    h('div', { class: 'charts' }, view.charts.map(chart => chart.node)),
    steady.length > 0 && h('p', { class: 'quiet' }, `Constant, so not drawn: ${steady.join('; ')}.`),
    page.experiments.filter(experiment => experiment.thinned > 1)
      .map(experiment => h('p', { class: 'quiet' }, `${experiment.name}: every ${experiment.thinned}th of ${whole(experiment.rows)} rows is drawn.`)),
    h('details', {}, h('summary', {}, 'The curves in figures'), figures(found)));
  for (const chart of view.charts) chart.draw();
}

/** A table of each curve's first, lowest, highest and last value. */
function figures(found) {
  const rows = found.flatMap(([, lines]) => lines.map(line => {
    const known = line.y.filter(value => value !== null);
    const least = known.reduce((a, b) => Math.min(a, b), Infinity);
    const most = known.reduce((a, b) => Math.max(a, b), -Infinity);
    return [line.name, page.experiments[line.experiment].name, ...(known.length ? [known[0], least, most, known.at(-1)] : [null, null, null, null]).map(brief)];
  }));
  return table('First, lowest, highest and last value of every curve',
    [['figure'], ['experiment'], ['first', 'n'], ['lowest', 'n'], ['highest', 'n'], ['last', 'n']], rows);
}

function showOverview() {
  const cards = page.experiments.map((experiment, place) => {
    const { status, best } = experiment;
    const done = status.phase_steps ? status.phase_step / status.phase_steps : 0;
    const figure = (name, value, style) => h('div', { class: style }, h('dt', {}, name), h('dd', {}, value));
    return h('article', { class: 'card experiment', own: colour(place) },
      h('h3', {}, experiment.name),
      h('p', { class: 'path' }, experiment.folder),
      h('div', { class: 'chips' }, [experiment.recipe, experiment.labels && `labels ${experiment.labels}`, `seed ${experiment.seed}`]
        .filter(Boolean).map(text => h('span', { class: 'chip' }, text))),
      h('dl', { class: 'figures' },
        best && figure(`${best.name === 'wer' ? 'best WER' : `best ${best.name}`} on dev, step ${whole(best.step)}`,
          best.name === 'wer' ? percent(best.value) : brief(best.value), 'main'),
        figure('updates', whole(status.step || 0)),
        figure('trained', clock(status.seconds)),
        experiment.speed && figure('audio s per s', brief(experiment.speed))),
      status.phase && h('label', { class: 'quiet' },
        `phase ${status.phase}: ${whole(status.phase_step)} of ${whole(status.phase_steps)}${done < 1 && status.seconds_left ? `, ${clock(status.seconds_left)} left` : ''}`,
        h('progress', { max: '1', value: String(done) })),
      experiment.changed && h('p', { class: 'quiet' }, `last row written ${ago(experiment.changed)}`),
      experiment.notes.map(note => h('p', { class: 'notice' }, note)));
  });
  byId('overview').append(h('div', { class: 'cards' }, cards));
}

function showResults() {
  const section = byId('results');
  if (!page.tests.length) {
    section.append(h('p', { class: 'notice' }, 'Nothing is decoded yet: asrkit decode --model EXP --data DATA --sets SET …'));
    return;
  }
  section.append(h('p', { class: 'quiet' }, 'Tables are per corpus and set; figures of different ones are not comparable.'));
  section.append(h('div', { class: 'stack' }, page.tests.map(test => h('div', { class: 'card' },
    h('h3', {}, test.title), dots(test), resultsTable(test), test.seeds.length > 0 && seedsTable(test)))));
}

/** A dot per result, with the interval that the choice of speakers leaves open. */
function dots(test) {
  const rows = [...test.results].sort((a, b) => a.wer - b.wer);
  const highest = Math.max(...rows.map(row => (row.interval ? row.interval[1] : row.wer)), 0.001);
  const levels = ticks(0, highest * 104, 5).filter(level => level >= 0);
  const end = Math.max(highest * 1.04, levels.at(-1) / 100);
  const at = rate => `${100 * rate / end}%`;
  const place = (node, left, width) => {
    node.style.left = left;
    if (width) node.style.width = width;
    return node;
  };
  return h('div', { class: 'dots', role: 'group', 'aria-label': `Word error rates on ${test.title}` },
    rows.map(row => {
      const own = colour(row.experiment);
      const told = row.interval ? `${percent(row.wer)}, 95 % interval ${percent(row.interval[0])} to ${percent(row.interval[1])}` : percent(row.wer);
      return h('div', { class: 'row' },
        h('span', { class: 'name' }, h('span', { class: 'swatch', own }), `${page.experiments[row.experiment].name}, ${row.decoder}`),
        h('span', { class: 'track', role: 'img', 'aria-label': told, own },
          row.interval && place(h('span', { class: 'range' }), at(row.interval[0]), at(row.interval[1] - row.interval[0])),
          place(h('span', { class: 'dot' }), at(row.wer))),
        h('span', { class: 'value' }, percent(row.wer), row.interval && h('span', { class: 'quiet' }, ` ${(100 * row.interval[0]).toFixed(1)}–${(100 * row.interval[1]).toFixed(1)}`)));
    }),
    h('span', { class: 'corner' }),
    h('span', { class: 'axis', 'aria-hidden': 'true' }, levels.map(level => place(h('span', {}, `${brief(level)} %`), at(level / 100)))),
    h('span', { class: 'corner quiet' }, rows.some(row => row.interval) ? '95 % over speakers' : ''));
}

function resultsTable(test) {
  const least = Math.min(...test.results.map(row => row.wer));
  const rows = test.results.map(row => ({
    cells: [
      h('span', {}, swatch(row.experiment), page.experiments[row.experiment].name), row.recipe, row.source || '–', row.subset || '–',
      row.lm ? `${row.decoder} (${row.lm})` : row.decoder, percent(row.wer), percent(row.cer),
      whole(row.substitutions), whole(row.deletions), whole(row.insertions), whole(row.updates), row.speed ? `${brief(row.speed)}×` : '–',
    ],
    best: row.wer === least && test.results.length > 1,
  }));
  const built = table(`WER, CER, word errors and decoding speed (times real time)${rows.some(row => row.best) ? '; ★ the lowest WER' : ''}`,
    [['experiment', 'keep'], ['recipe'], ['source'], ['labels'], ['decoder'], ['WER', 'n'], ['CER', 'n'], ['sub', 'n'], ['del', 'n'], ['ins', 'n'], ['updates', 'n'], ['speed', 'n']], rows);
  rows.forEach((row, k) => {
    if (row.best) built.querySelectorAll('tbody tr')[k].children[5].classList.add('best');
  });
  return built;
}

function seedsTable(test) {
  return table('Mean over seeds ± sample standard deviation',
    page.headings.map(heading => [heading.name, heading.right ? 'n' : null]), test.seeds);
}
