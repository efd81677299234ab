// The configuration of all experiments side by side, and the surroundings in which they ran.

function showSettings() {
  const section = byId('settings');
  const query = h('input', { type: 'search', placeholder: 'Search settings', 'aria-label': 'Search settings', oninput: () => draw() });
  const many = page.experiments.length > 1;
  const different = h('input', { type: 'checkbox', onchange: () => draw() });
  different.checked = many;
  const keys = [...new Set(page.experiments.flatMap(experiment => Object.keys(experiment.config)))];
  const holder = h('div', { class: 'card limited settings' });
  const draw = () => {
    const sought = query.value.trim().toLowerCase();
    const rows = keys.flatMap(key => {
      const values = page.experiments.map(experiment => experiment.config[key] ?? '–');
      const differs = new Set(values).size > 1;
      if ((different.checked && many && !differs) || !`${key} ${values.join(' ')}`.toLowerCase().includes(sought)) return [];
      return [{ attributes: { class: differs ? 'differs' : null }, cells: [key, ...values] }];
    });
    holder.replaceChildren(rows.length
      ? table(`${whole(rows.length)} of ${whole(keys.length)} settings`, [['setting'], ...page.experiments.map(experiment => [experiment.name])], rows, { class: 'values' })
      : h('p', {}, many && different.checked && !sought ? 'The experiments have the same settings.' : 'No such setting.'));
  };
  draw();
  section.append(h('div', { class: 'bar' }, query, many && h('label', {}, different, 'Only where experiments differ (≠)')), holder, tabs());
}

/** config.yaml, train.log and the environment of each experiment, one experiment per tab. */
function tabs() {
  const panels = page.experiments.map((experiment, place) => h('div', { role: 'tabpanel', id: `panel-${place}`, 'aria-labelledby': `tab-${place}`, tabindex: '0' },
    Object.keys(experiment.environment).length
      ? table('Environment of the training', [['what'], ['found']], Object.entries(experiment.environment), { class: 'values' })
      : h('p', { class: 'quiet' }, 'This experiment has no environment.json.'),
    h('details', {}, h('summary', {}, 'config.yaml'), h('pre', { tabindex: '0' }, experiment.yaml)),
    h('details', {}, h('summary', {}, `train.log${experiment.log_cut ? ', its end' : ''}`), h('pre', { tabindex: '0' }, experiment.log || '(empty)'))));
  const heads = page.experiments.map((experiment, place) => h('button', {
    type: 'button', role: 'tab', id: `tab-${place}`, 'aria-controls': `panel-${place}`, onclick: () => select(place),
    onkeydown: event => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (place + step + heads.length) % heads.length;
      select(next);
      heads[next].focus();
    },
  }, swatch(place), experiment.name));
  const select = chosen => heads.forEach((head, place) => {
    head.setAttribute('aria-selected', String(place === chosen));
    head.tabIndex = place === chosen ? 0 : -1;
    panels[place].hidden = place !== chosen;
  });
  select(0);
  return h('div', { class: 'card' }, h('div', { role: 'tablist', 'aria-label': 'Experiments' }, heads), panels);
}
