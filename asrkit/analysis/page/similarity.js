// How alike the layers of two models are (`asrkit similarity`), a line per pair, a chart for pairs of the same layers.

function showSimilarity() {
  if (!page.similarity.length) {
    byId('similarity').remove();
    return;
  }
  byId('similarity').append(h('div', { class: 'stack' }, page.similarity.map(similarityChart)));
}

function similarityChart({ layers, lines }) {
  const lowest = Math.max(0, Math.floor(10 * Math.min(...lines.flatMap(line => line.values)) - 0.5) / 10);
  const dash = place => DASHES[Math.floor(place / 8) % DASHES.length];
  const picture = s('svg', { role: 'img', class: 'still', 'aria-label': 'PWCCA per layer; the table below has the numbers' });
  new ResizeObserver(() => {
    const { width, height } = picture.getBoundingClientRect();
    const x = k => 40 + (k + 0.5) * Math.max(1, width - 48) / layers.length;
    const y = value => 12 + (1 - value) / (1 - lowest) * (height - 44);
    const every = Math.ceil(layers.length * 26 / Math.max(26, width - 48));
    picture.replaceChildren(
      ...ticks(lowest, 1, 5).flatMap(level => [
        s('line', { class: 'gridline', x1: 40, x2: width - 8, y1: y(level), y2: y(level) }),
        s('text', { x: 34, y: y(level) + 4, 'text-anchor': 'end' }, brief(level))]),
      ...layers.flatMap((layer, k) => (k % every ? [] : [s('text', { x: x(k), y: height - 8, 'text-anchor': 'middle' }, layer)])),
      ...lines.map((line, place) => s('g', { own: colour(place) },
        s('path', { class: 'curve', 'stroke-dasharray': dash(place), d: line.values.map((value, k) => `${k ? 'L' : 'M'}${x(k).toFixed(1)} ${y(value).toFixed(1)}`).join('') }),
        line.values.map((value, k) => s('circle', { class: 'mark', cx: x(k).toFixed(1), cy: y(value).toFixed(1), r: 3.5 },
          s('title', {}, `${line.name}, layer ${layers[k]}: ${value.toFixed(4)}`))))));
  }).observe(picture);
  const keys = h('div', { class: 'keys' }, lines.map((line, place) => h('span', {},
    s('svg', { viewBox: '0 0 24 8', 'aria-hidden': 'true', own: colour(place) },
      s('path', { d: 'M0 4H24', class: 'curve', 'stroke-dasharray': dash(place) }), s('circle', { cx: 12, cy: 4, r: 3, class: 'mark' })),
    line.name)));
  return h('figure', { class: 'card chart large' }, picture, keys,
    h('figcaption', {}, 'Symmetrised projection-weighted CCA of each layer’s states: 1 is the same up to a linear map; layer 0 is the input of the blocks.'),
    table('Similarity by layer', [['pair'], ...layers.map(layer => [layer, 'n'])],
      lines.map(line => [line.name, ...line.values.map(value => value.toFixed(3))])));
}
