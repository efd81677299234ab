// Which kinds of errors a decoding made: totals, confusions, speakers; and PWCCA where it was computed.

/** Return the label of a decoding. */
function decodingName(decoding) {
  return `${page.experiments[decoding.experiment].name}: ${decoding.set} (${decoding.corpus}), ${decoding.decoder}`;
}

function showErrors() {
  const section = byId('errors');
  if (!page.decodings.length) {
    section.append(h('p', { class: 'notice' }, 'Needs a decoded set.'));
    return;
  }
  const body = h('div', { class: 'stack' });
  const show = place => {
    memory.set('errors', place);
    body.replaceChildren(...errorTables(page.decodings[place]));
  };
  const chosen = Math.min(memory.get('errors', 0), page.decodings.length - 1);
  section.append(h('div', { class: 'bar' },
    choice('Decoding', page.decodings.map((decoding, k) => [k, decodingName(decoding)]), chosen, value => show(Number(value)))), body);
  show(chosen);
}

function errorTables(decoding) {
  const { substitutions, deletions, insertions, words, utterances, wrong } = decoding.totals;
  const all = substitutions + deletions + insertions;
  const kinds = [['s', 'substitutions', substitutions], ['d', 'deletions', deletions], ['i', 'insertions', insertions]];
  const bar = h('div', { class: 'kinds', 'aria-hidden': 'true' }, kinds.filter(([, , count]) => count).map(([kind, name, count]) => {
    const part = h('div', { class: kind, title: `${whole(count)} ${name}` }, count > all / 12 ? `${name[0].toUpperCase()} ${whole(count)}` : '');
    part.style.flex = String(count);
    return part;
  }));
  const limited = node => { node.classList.add('limited'); return h('div', { class: 'card' }, node); };
  const share = count => (all ? percent(count / all, 1) : '–');
  return [
    h('div', { class: 'card' },
      h('p', {}, h('b', {}, percent(decoding.wer)), ` WER: ${whole(all)} word errors in ${whole(words)} words; ${whole(wrong)} of ${whole(utterances)} utterances have at least one.`),
      all > 0 && bar,
      table('Word errors by kind', [['kind'], ['errors', 'n'], ['per reference word', 'n'], ['of all errors', 'n']],
        kinds.map(([, name, count]) => [name, whole(count), percent(words ? count / words : null), share(count)]))),
    h('div', { class: 'split' },
      limited(table('Words taken for others', [['reference'], ['hypothesis'], ['times', 'n']], decoding.substituted.map(([a, b, n]) => [a, b, whole(n)]))),
      decoding.speakers.length > 1 && limited(table('Speakers, the hardest first', [['speaker'], ['errors', 'n'], ['words', 'n'], ['WER', 'n']],
        decoding.speakers.map(([name, errors, count]) => [name, whole(errors), whole(count), percent(count ? errors / count : null)]))),
      limited(table('Words left out', [['reference'], ['times', 'n']], decoding.deleted.map(([a, n]) => [a, whole(n)]))),
      limited(table('Words put in', [['hypothesis'], ['times', 'n']], decoding.inserted.map(([a, n]) => [a, whole(n)])))),
  ];
}

function showSimilarity() {
  if (!page.similarity.length) {
    byId('similarity').remove();
    return;
  }
  byId('similarity').append(h('div', { class: 'stack' }, page.similarity.map(found => {
    const [width, height] = [640, 220];
    const x = k => 44 + k * (width - 60) / Math.max(1, found.values.length - 1);
    const y = value => 14 + (1 - value) * (height - 46);
    const points = found.values.map((value, k) => [x(k), y(value)]);
    const picture = s('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', class: 'fixed', own: colour(0), 'aria-label': `PWCCA per layer: ${found.values.map(value => value.toFixed(3)).join(', ')}` },
      [0, 0.25, 0.5, 0.75, 1].map(level => [
        s('line', { class: 'gridline', x1: 44, x2: width - 16, y1: y(level), y2: y(level) }),
        s('text', { x: 38, y: y(level) + 4, 'text-anchor': 'end' }, String(level))]),
      found.layers.map((layer, k) => s('text', { x: x(k), y: height - 8, 'text-anchor': 'middle' }, layer)),
      s('path', { class: 'curve', d: points.map(([a, b], k) => `${k ? 'L' : 'M'}${a.toFixed(1)} ${b.toFixed(1)}`).join('') }),
      points.map(([a, b], k) => s('circle', { class: 'mark', cx: a, cy: b, r: 4 }, s('title', {}, `layer ${found.layers[k]}: ${found.values[k].toFixed(4)}`))));
    return h('figure', { class: 'card chart large' }, h('h3', {}, found.title), picture,
      h('figcaption', {}, 'Projection-weighted CCA of each layer’s states: 1 is the same up to a linear map.'));
  })));
}
