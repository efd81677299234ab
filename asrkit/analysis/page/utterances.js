// Every utterance of a decoding: searchable, sortable, rendered as far as it is looked at; with sound where it is embedded.

const STEP = 60;
const state = { decoding: 0, order: 'errors', down: true, query: '', wrong: true, rows: [], shown: 0 };

/** Return an utterance of a decoding: {id, place, speaker, seconds, reference, hypothesis, operations, …}. */
function utterance(decoding, place) {
  const set = data(decoding.texts);
  const own = data(decoding.data);
  const reference = set.references[place];
  const operations = own.operations[place];
  const [words, substitutions, deletions, insertions] = counts(operations);
  const errors = substitutions + deletions + insertions;
  return {
    id: set.ids[place], place, speaker: set.speakers[place] || '', seconds: set.seconds[place], reference, operations, words, errors,
    hypothesis: own.hypotheses[place] === null ? reference : own.hypotheses[place], rate: errors / Math.max(1, words),
    heard: Boolean(set.media[place]),
  };
}

const COLUMNS = [
  ['id', 'Utterance', '', row => row.id],
  ['speaker', 'Speaker', 'wideonly', row => row.speaker],
  ['seconds', 'Seconds', 'n wideonly', row => row.seconds],
  ['errors', 'Errors', 'n', row => row.errors],
  ['words', 'Words', 'n wideonly', row => row.words],
  ['rate', 'WER', 'n', row => row.rate],
];

function showUtterances() {
  const section = byId('utterances');
  if (!page.decodings.length) {
    section.append(h('p', { class: 'notice' }, 'Needs a decoded set.'));
    return;
  }
  Object.assign(state, memory.get('utterances', {}));
  state.decoding = Math.min(state.decoding, page.decodings.length - 1);
  const wrong = h('input', { type: 'checkbox', onchange: event => { state.wrong = event.target.checked; list(); } });
  wrong.checked = state.wrong;
  section.append(
    h('div', { class: 'bar' },
      choice('Decoding', page.decodings.map((decoding, k) => [k, decodingName(decoding)]), state.decoding, value => { state.decoding = Number(value); collect(); }),
      h('input', { type: 'search', placeholder: 'Search ids and texts', 'aria-label': 'Search ids and texts', value: state.query,
        oninput: event => { state.query = event.target.value; list(); } }),
      h('label', {}, wrong, 'Only with errors'),
      choice('Sort', COLUMNS.map(([name, title]) => [name, title]), state.order, value => { state.order = value; state.down = value !== 'id' && value !== 'speaker'; list(); })),
    h('p', { class: 'quiet', id: 'utterance-count', role: 'status' }),
    h('p', { class: 'quiet', id: 'utterance-note' }),
    h('div', { class: 'card scroll' }, h('table', { id: 'utterance-table' },
      h('caption', { class: 'hidden' }, 'Utterances of the decoding; a row opens to its alignment, audio and pictures'),
      h('thead', {}, h('tr', {}, COLUMNS.map(([name, title, style]) => h('th', { scope: 'col', class: style, 'data-column': name },
        h('button', { type: 'button', onclick: () => sortBy(name) }, title))), h('th', { scope: 'col', class: 'wideonly' }, 'Hypothesis, errors marked'))),
      h('tbody', { id: 'utterance-rows' }))),
    h('button', { type: 'button', class: 'more', id: 'more', onclick: more }, 'Show more'));
  // The table grows when its end comes near; the button is there for those who do not scroll.
  new IntersectionObserver(entries => { if (entries.some(entry => entry.isIntersecting) && state.shown > 0) more(); }, { rootMargin: '300px' }).observe(byId('more'));
  collect();
}

function sortBy(name) {
  state.down = state.order === name ? !state.down : name !== 'id' && name !== 'speaker';
  state.order = name;
  list();
}

function collect() {
  const decoding = page.decodings[state.decoding];
  state.all = data(decoding.texts).ids.map((_, place) => utterance(decoding, place));
  for (const row of state.all) row.search = `${row.id} ${row.reference} ${row.hypothesis}`.toLowerCase();
  byId('utterance-note').textContent = decoding.note;
  list();
}

function list() {
  const { order, down, query, wrong } = state;
  memory.set('utterances', { decoding: state.decoding, order, down, query, wrong });
  const key = COLUMNS.find(([name]) => name === order)[3];
  const sought = query.trim().toLowerCase();
  state.rows = state.all.filter(row => (!wrong || row.errors) && row.search.includes(sought));
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (typeof x === 'string') return x.localeCompare(y, 'en', { numeric: true });
    return (x ?? -1) - (y ?? -1);
  };
  // Of equally many errors those in a shorter text are worse.
  state.rows.sort((a, b) => (down ? -1 : 1) * compare(a, b) || b.rate - a.rate || a.place - b.place);
  for (const head of document.querySelectorAll('#utterance-table > thead [data-column]')) {
    const own = head.dataset.column === order;
    if (own) head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    else head.removeAttribute('aria-sort');
  }
  byId('utterance-count').textContent = `${whole(state.rows.length)} of ${whole(state.all.length)} utterances`;
  byId('utterance-rows').replaceChildren();
  state.shown = 0;
  more();
  const first = byId('utterance-rows').querySelector('.open');
  if (first && !query && order === 'errors') first.click();
}

function more() {
  const decoding = page.decodings[state.decoding];
  byId('utterance-rows').append(...state.rows.slice(state.shown, state.shown + STEP).map(row => line(decoding, row)));
  state.shown = Math.min(state.rows.length, state.shown + STEP);
  byId('more').hidden = state.shown >= state.rows.length;
}

function line(decoding, row) {
  const toggle = event => {
    const [button, own] = [event.currentTarget, event.currentTarget.closest('tr')];
    const open = button.getAttribute('aria-expanded') !== 'true';
    button.setAttribute('aria-expanded', String(open));
    if (open) own.after(h('tr', { class: 'detail' }, h('td', { colspan: '7' }, detail(decoding, row))));
    else own.nextElementSibling.remove();
  };
  const values = [
    h('button', { type: 'button', class: 'open', 'aria-expanded': 'false', onclick: toggle }, row.id, row.heard && h('span', { title: 'with audio' }, ' ♪')),
    row.speaker, row.seconds === null ? '–' : row.seconds.toFixed(1), String(row.errors), String(row.words), percent(row.rate, 0),
  ];
  const marked = inline(row.reference, row.hypothesis, row.operations);
  values[0] = [values[0], h('div', { class: 'narrowonly' }, marked.cloneNode(true))];
  return h('tr', {}, COLUMNS.map(([, , style], k) => h(k ? 'td' : 'th', { class: style, scope: k ? null : 'row' }, values[k])),
    h('td', { class: 'wideonly' }, marked));
}

function detail(decoding, row) {
  const others = page.decodings.filter(other => other !== decoding && other.texts === decoding.texts);
  return h('div', { class: 'stack' },
    aligned(row.reference, row.hypothesis, row.operations),
    sound(decoding, row),
    others.length > 0 && h('details', {}, h('summary', {}, `The same utterance in ${others.length} other decoding${others.length > 1 ? 's' : ''}`),
      others.map(other => {
        const same = utterance(other, row.place);
        return h('div', {}, h('p', {}, swatch(other.experiment), `${page.experiments[other.experiment].name}, ${other.decoder}: ${same.errors} error${same.errors === 1 ? '' : 's'}`),
          aligned(same.reference, same.hypothesis, same.operations));
      })));
}

/** Audio, spectrogram and posteriors over one time axis; a click plays from there. */
function sound(decoding, row) {
  const set = data(decoding.texts);
  const media = set.media[row.place] && data(set.media[row.place]);
  if (!media) return h('p', { class: 'quiet' }, set.silence || 'Audio is embedded for the worst utterances only.');
  const head = h('div', { class: 'head' });
  const player = h('audio', { controls: true, preload: 'metadata', src: media.audio, 'aria-label': `Audio of ${row.id}` });
  const strip = h('div', { class: 'strip', onclick: event => {
    const box = strip.getBoundingClientRect();
    player.currentTime = (event.clientX - box.left) / box.width * media.seconds;
    player.play();
  } }, h('img', { src: media.spectrogram, alt: `Spectrogram of ${row.id}, 0 to 8 kHz, ${media.seconds.toFixed(1)} seconds` }), head);
  // Short utterances are drawn wider, so that their spikes can be told apart.
  const width = Math.ceil(media.seconds * Math.max(95, Math.min(280, 900 / media.seconds)));
  strip.style.width = `${width}px`;
  const posterior = (data(decoding.data).posteriors || {})[row.place];
  if (posterior) strip.insertBefore(spikes(posterior, width, media.seconds), head);
  const follow = () => {
    head.style.display = 'block';
    head.style.left = `${100 * player.currentTime / media.seconds}%`;
    if (!player.paused) requestAnimationFrame(follow);
  };
  for (const name of ['play', 'seeked', 'timeupdate']) player.addEventListener(name, follow);
  return h('div', { class: 'stack' }, player,
    h('div', { class: 'pictures', tabindex: '0', role: 'group', 'aria-label': 'Spectrogram and posteriors' }, strip),
    h('p', { class: 'quiet' }, posterior
      ? 'Above the spectrogram, 0 to 8 kHz; below the CTC posteriors: the likeliest unit of each frame with its letter (␣ between words), rivals in the second colour, the blank as a grey line. A click plays from there.'
      : `The spectrogram, 0 to 8 kHz. A click plays from there. ${decoding.posteriors}`));
}

function spikes(posterior, width, seconds) {
  const [height, base, top] = [128, 108, 22];
  const x = frame => (frame + 0.5) / posterior.frames * width;
  const y = share => base - share / 100 * (base - top);
  const highest = new Array(posterior.frames).fill(0);
  for (const [, start, shares] of posterior.runs) shares.forEach((share, k) => { highest[start + k] = Math.max(highest[start + k], share); });
  const labels = [];
  const shapes = posterior.runs.map(([place, start, shares]) => {
    const blank = place === posterior.blank;
    const wins = shares.some((share, k) => share === highest[start + k]);
    const peak = shares.indexOf(Math.max(...shares));
    const outline = shares.map((share, k) => `L${x(start + k).toFixed(1)} ${y(share).toFixed(1)}`).join('');
    if (blank) return s('path', { class: 'blank', d: `M${outline.slice(1)}` });
    if (shares[peak] >= 30) {
      const name = posterior.symbols[place];
      labels.push(s('text', { x: x(start + peak).toFixed(1), y: (y(shares[peak]) - 4).toFixed(1) }, name === '|' ? '␣' : name.replaceAll('\u2581', '␣')));
    }
    return s('path', { class: wins ? 'unit' : 'rival', d: `M${x(start - 0.7).toFixed(1)} ${base}${outline}L${x(start + shares.length - 0.3).toFixed(1)} ${base}Z` });
  });
  const marks = [];
  for (let second = 0; second < seconds; second += 1) marks.push(s('text', { class: 'scale', x: second / seconds * width + 2, y: height - 5 }, `${second} s`));
  return s('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', class: 'posterior', 'aria-label': `CTC posteriors, ${posterior.frames} frames` },
    shapes, labels, marks);
}
