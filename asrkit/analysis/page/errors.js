// Which kinds of errors a decoding made: totals, confusions, speakers.

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
