// What all parts share: elements, numbers, data, memory. Text only ever enters the page as text, never as markup.

const SVG = 'http://www.w3.org/2000/svg';

/** Return the element with an id. */
const byId = id => document.getElementById(id);

/** Give a node its attributes and children: `onclick` and its like are listeners, null and false are left out. */
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'own') node.style.setProperty('--own', value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

/** Return a new HTML element. */
const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);

/** Return a new SVG element. */
const s = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

const parsed = new Map();

/** Return the JSON that the page carries under an id, parsed once; undefined where there is none. */
function data(id) {
  if (!parsed.has(id)) {
    const holder = byId(id);
    parsed.set(id, holder ? JSON.parse(holder.textContent) : undefined);
  }
  return parsed.get(id);
}

const page = data('page');

/** What outlives a reload of the page; a browser that forbids storage forgets. */
const memory = {
  get(key, otherwise) {
    try {
      const text = sessionStorage.getItem(`${page.title}:${key}`);
      return text === null ? otherwise : JSON.parse(text);
    } catch {
      return otherwise;
    }
  },
  set(key, value) {
    try {
      sessionStorage.setItem(`${page.title}:${key}`, JSON.stringify(value));
    } catch {
      // The page works without.
    }
  },
};

const percent = (rate, digits = 2) => (rate === null || rate === undefined ? '–' : `${(100 * rate).toFixed(digits)} %`);
const whole = number => Number(number).toLocaleString('en');

/** Return a number as short as it is clear. */
function brief(value) {
  if (value === null || value === undefined) return '–';
  const size = Math.abs(value);
  if (value === 0) return '0';
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace('e+', 'e');
  if (size >= 1000) return whole(Math.round(value));
  return String(Number(value.toPrecision(4)));
}

/** Return seconds as h:mm:ss or m:ss. */
function clock(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  const total = Math.round(seconds);
  const two = number => String(number).padStart(2, '0');
  const [hours, minutes, rest] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** Return how long ago a moment (seconds since 1970) is. */
function ago(moment) {
  const seconds = Math.max(0, Date.now() / 1000 - moment);
  for (const [size, name] of [[86400, 'day'], [3600, 'hour'], [60, 'minute']]) {
    const count = Math.floor(seconds / size);
    if (count) return `${count} ${name}${count > 1 ? 's' : ''} ago`;
  }
  return 'less than a minute ago';
}

const colour = place => `var(--c${place % 8})`;
const swatch = place => h('span', { class: 'swatch', own: colour(place), 'aria-hidden': 'true' });

/** Return a table. Columns are [heading, class]; a row is a list of cells, a string or a node each. */
function table(caption, columns, rows, attributes = {}) {
  const cell = (value, place) => {
    const kind = place === 0 ? 'th' : 'td';
    return h(kind, { scope: place === 0 ? 'row' : null, class: columns[place][1] }, value);
  };
  return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption },
    h('table', attributes,
      h('caption', {}, caption),
      h('thead', {}, h('tr', {}, columns.map(([name, style]) => h('th', { scope: 'col', class: style }, name)))),
      h('tbody', {}, rows.map(row => h('tr', row.attributes, (row.cells || row).map(cell))))));
}

/** Return a labelled choice; `changed` gets the chosen option's value. */
function choice(label, options, chosen, changed) {
  const select = h('select', { onchange: event => changed(event.target.value) },
    options.map(([value, text]) => h('option', { value, selected: String(value) === String(chosen) }, text)));
  return h('label', {}, label, select);
}

/** Say something to a screen reader. */
const announce = text => { byId('announce').textContent = text; };
