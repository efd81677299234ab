// Reference and hypothesis, word under word. The alignment comes as counts and letters: 4=1s2d1i.

const KINDS = {
  '=': ['', ''],
  s: ['S', 'substituted'],
  d: ['D', 'deleted'],
  i: ['I', 'inserted'],
};

/** Return [[kind, reference word or null, hypothesis word or null], …]. */
function pairs(reference, hypothesis, operations) {
  const spoken = reference.split(' ').filter(Boolean);
  const heard = hypothesis.split(' ').filter(Boolean);
  const found = [];
  let [r, n] = [0, 0];
  for (const [, count, kind] of operations.matchAll(/(\d+)([=sdi])/g)) {
    for (let k = 0; k < Number(count); k++) {
      found.push([kind, kind === 'i' ? null : spoken[r++], kind === 'd' ? null : heard[n++]]);
    }
  }
  return found;
}

/** Return [reference words, substitutions, deletions, insertions] of an alignment. */
function counts(operations) {
  const totals = { '=': 0, s: 0, d: 0, i: 0 };
  for (const [, count, kind] of operations.matchAll(/(\d+)([=sdi])/g)) totals[kind] += Number(count);
  return [totals['='] + totals.s + totals.d, totals.s, totals.d, totals.i];
}

/** Return the two texts, word under word; errors carry a letter and a stroke beside their colour. */
function aligned(reference, hypothesis, operations) {
  const side = (kind, word) => h('span', { class: `${kind}${word === null ? ' gap' : ''}` }, word === null ? '···' : word);
  return h('ul', { class: 'aligned', 'aria-label': 'Alignment' },
    h('li', { class: 'sides', 'aria-hidden': 'true' }, h('span', {}, 'ref'), h('span', {}, 'hyp'), h('span')),
    pairs(reference, hypothesis, operations).map(([kind, spoken, heard]) => {
      const [letter, name] = KINDS[kind];
      return h('li', { class: `w ${kind === '=' ? '' : kind}` },
        side('ref', spoken), side('hyp', heard),
        name ? h('b', {}, letter, h('span', { class: 'hidden' }, ` ${name}`)) : h('b'));
    }));
}

/** Return the hypothesis as one line of text in which errors are marked. */
function inline(reference, hypothesis, operations) {
  const words = pairs(reference, hypothesis, operations);
  if (!words.length) return h('span', { class: 'snippet' }, '(empty)');
  return h('span', { class: 'snippet' }, words.map(([kind, spoken, heard]) => {
    if (kind === 'd') return [h('del', { class: 'w d' }, spoken), ' '];
    if (kind === 'i') return [h('ins', { class: 'w i' }, heard), ' '];
    if (kind === 's') return [h('span', { class: 'w s', title: `for ${spoken}` }, heard), ' '];
    return `${heard} `;
  }));
}
