// Puts the page together, and keeps it alive while a training runs.

function showTheme() {
  const button = byId('theme');
  const dark = () => getComputedStyle(document.documentElement).colorScheme === 'dark'
    || (!document.documentElement.dataset.theme && matchMedia('(prefers-color-scheme: dark)').matches);
  const apply = () => button.setAttribute('aria-pressed', String(dark()));
  const chosen = memory.get('theme', null);
  if (chosen) document.documentElement.dataset.theme = chosen;
  button.addEventListener('click', () => {
    document.documentElement.dataset.theme = dark() ? 'light' : 'dark';
    memory.set('theme', document.documentElement.dataset.theme);
    apply();
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', apply);
  apply();
}

function showSections() {
  const links = new Map([...document.querySelectorAll('main > section')].map(section => {
    const title = section.querySelector('h2').textContent.split(' ')[0];
    return [section, h('a', { href: `#${section.id}` }, title)];
  }));
  byId('sections').append(...links.values());
  const seen = new Set();
  const watcher = new IntersectionObserver(entries => {
    for (const entry of entries) seen[entry.isIntersecting ? 'add' : 'delete'](entry.target);
    const current = [...links.keys()].find(section => seen.has(section));
    for (const [section, link] of links) {
      if (section === current) {
        link.setAttribute('aria-current', 'true');
        byId('sections').scrollLeft = link.offsetLeft - byId('sections').offsetLeft - 16;
      }
      else link.removeAttribute('aria-current');
    }
  }, { rootMargin: '-25% 0px -60% 0px' });
  for (const section of links.keys()) watcher.observe(section);
}

/** In watch mode the page loads itself again, unless it was paused, plays audio, or its reader is typing or dragging. */
function keepAlive() {
  if (!page.refresh) return;
  const [live, pause] = [byId('live'), byId('pause')];
  live.hidden = false;
  let paused = memory.get('paused', false);
  const apply = () => {
    pause.setAttribute('aria-pressed', String(paused));
    live.classList.toggle('paused', paused);
    byId('live-text').textContent = paused ? 'paused' : `every ${brief(page.refresh)} s`;
  };
  pause.addEventListener('click', () => { paused = !paused; memory.set('paused', paused); apply(); });
  apply();
  const busy = () => paused || document.hidden || [...document.querySelectorAll('audio')].some(player => !player.paused)
    || document.activeElement?.matches('input[type="search"], select') || view.charts.some(chart => chart.from !== undefined);
  setInterval(() => {
    if (busy()) return;
    memory.set('scroll', scrollY);
    location.reload();
  }, 1000 * page.refresh);
  const scrolled = memory.get('scroll', null);
  if (scrolled !== null) {
    memory.set('scroll', null);
    scrollTo(0, scrolled);
  }
}

byId('title').textContent = page.title;
byId('made').textContent = page.made;
showTheme();
showOverview();
showResults();
showCurves();
showErrors();
showUtterances();
showSimilarity();
showSettings();
showSections();
keepAlive();
