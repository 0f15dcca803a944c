'use strict';
// The table of all tensors and the picture. Names come from outside: they are written as text nodes only, never as HTML.

const ROW = 28;      // height of a row of the table in CSS pixels, as page.css has it
const BEYOND = 10;   // rows that are drawn above and below what is seen

const find = (selector) => document.querySelector(selector);

function element(tag, text = '', attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** Bytes in a suitable unit, as in the rest of the page. */
function size(nbytes) {
  let unit = 'B';
  for (const larger of ['kB', 'MB', 'GB', 'TB']) {
    if (nbytes < 999.5) break;
    nbytes /= 1000;
    unit = larger;
  }
  return unit === 'B' ? `${nbytes} B` : `${Number(nbytes.toPrecision(3))} ${unit}`;
}

/** The content of the page's data, which is compressed JSON. */
async function unpacked() {
  const bytes = Uint8Array.from(atob(find('#data').textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return JSON.parse(await new Response(stream).text());
}

// ---- the table ----

// Each with its name in the data, its heading and its width; the columns of names share what is left.
const COLUMNS = [
  ['status', 'Status', '118px'], ['source', 'Source', '106px'], ['names', 'Source name', 'auto'], ['target', 'Target name', 'auto'],
  ['rules', 'Rule', '148px'], ['dtype', 'Dtype', '104px'], ['shape', 'Shape', '150px'], ['nbytes', 'Size', '88px'],
];

class Table {
  constructor(columns) {
    this.columns = columns;
    this.count = columns.names.length;
    this.filters = { component: '', rules: '', status: '' };
    this.words = [];
    this.order = null;
    this.chosen = -1;
    const parts = ['source', 'names', 'target', 'rules', 'dtype', 'shape', 'how'];
    this.haystack = Array.from({ length: this.count }, (_, row) => parts.map((part) => this.at(part, row)).join('\n').toLowerCase());
    this.view = find('#table');
    this.body = find('#table tbody');
    this.head();
    this.choices();
    this.view.addEventListener('scroll', () => this.draw());
    this.body.addEventListener('click', (event) => this.choose(event.target.closest('[data-row]')));
    // `input` comes at once; `change` would come when a click leaves the search, and cost it the row under it.
    find('#filters').addEventListener('input', () => this.filter());
    find('#filters').addEventListener('submit', (event) => event.preventDefault());
    find('#filters').addEventListener('reset', () => setTimeout(() => this.filter()));
    new ResizeObserver(() => this.draw()).observe(this.view);
    this.filter();
  }

  /** The value of a column in a row. */
  at(column, row) {
    const values = this.columns[column];
    return Array.isArray(values) ? values[row] : values.texts[values.of[row]];
  }

  head() {
    for (const [column, label, width] of COLUMNS) {
      const cell = element('th', label, { scope: 'col', style: `width: ${width}`, tabindex: 0 });
      if (column === 'nbytes') cell.className = 'number';
      cell.addEventListener('click', () => this.sort(column, cell));
      cell.addEventListener('keydown', ({ key }) => key === 'Enter' && this.sort(column, cell));
      find('#table thead tr').append(cell);
    }
  }

  /** Fill the lists of values to choose from, each with its number of tensors. */
  choices() {
    for (const column of Object.keys(this.filters)) {
      const counts = new Map();
      for (let row = 0; row < this.count; row += 1) {
        for (const value of this.parts(column, row)) counts.set(value, (counts.get(value) ?? 0) + 1);
      }
      const options = [...counts].sort(([one], [other]) => (one < other ? -1 : 1));
      const list = find(`#${column}`);
      list.append(element('option', 'all', { value: '' }));
      for (const [value, count] of options) {
        if (value) list.append(element('option', `${value} (${count})`, { value }));
      }
    }
  }

  /** The values by which a row is found: a name may have gone through several rules. */
  parts(column, row) {
    return column === 'rules' ? this.at(column, row).split('\n') : [this.at(column, row)];
  }

  /** Choose by one column, and forget what was chosen before. */
  only(column, value) {
    find('#filters').reset();
    find(`#${column}`).value = value;
    this.filter();
    find('#tensors').scrollIntoView();
  }

  filter() {
    for (const column of Object.keys(this.filters)) this.filters[column] = find(`#${column}`).value;
    this.words = find('#search').value.toLowerCase().split(/\s+/).filter(Boolean);
    this.shown = [];
    for (let row = 0; row < this.count; row += 1) if (this.fits(row)) this.shown.push(row);
    if (this.order) this.shown.sort(this.order);
    const nbytes = this.shown.reduce((sum, row) => sum + this.columns.nbytes[row], 0);
    find('#count').textContent = `${this.shown.length.toLocaleString('en')} of ${this.count.toLocaleString('en')} tensors, ${size(nbytes)}`;
    this.view.style.setProperty('--rows', Math.max(this.shown.length, 6) + 2);
    this.view.scrollTop = 0;
    this.draw();
  }

  fits(row) {
    return this.words.every((word) => this.haystack[row].includes(word))
      && Object.entries(this.filters).every(([column, value]) => !value || this.parts(column, row).includes(value));
  }

  /** By a column: ascending, then descending, then as it was. */
  sort(column, cell) {
    const next = { ascending: 'descending', descending: '' }[cell.getAttribute('aria-sort') ?? ''] ?? 'ascending';
    for (const other of document.querySelectorAll('#table th')) other.removeAttribute('aria-sort');
    this.order = null;
    if (next) {
      cell.setAttribute('aria-sort', next);
      const sign = next === 'ascending' ? 1 : -1;
      this.order = (one, other) => {
        const [a, b] = [this.at(column, one), this.at(column, other)];
        return a === b ? one - other : a < b ? -sign : sign;
      };
    }
    this.filter();
  }

  /** Draw the rows that are seen, between two spaces as high as all rows above and below them. */
  draw() {
    const first = Math.max(Math.floor(this.view.scrollTop / ROW) - BEYOND, 0);
    const last = Math.min(first + Math.ceil(this.view.clientHeight / ROW) + 2 * BEYOND, this.shown.length);
    const drawn = [this.shown, this.chosen, first, last];
    if (drawn.every((value, at) => value === this.drawn?.[at])) return;   // a row under a pressed button stays
    this.drawn = drawn;
    const rows = this.shown.slice(first, last).map((row) => this.row(row));
    this.body.replaceChildren(space(first), ...rows, space(this.shown.length - Math.max(last, first)));
  }

  row(number) {
    const row = element('tr', '', { 'data-row': number });
    if (number === this.chosen) row.className = 'chosen';
    for (const [column] of COLUMNS) {
      const value = this.at(column, number);
      const cell = element('td', '', { title: value });
      if (column === 'status') cell.append(element('span', value, { class: `status ${value.replace(' ', '-')}` }));
      else if (column === 'nbytes') cell.textContent = value ? size(value) : '';
      else if (column === 'names' || column === 'target') {
        cell.className = 'name';   // a name that is too long shows its end
        cell.append(element('bdi', value.replaceAll('\n', ' + '), { dir: 'ltr' }));
      } else cell.textContent = value.replaceAll('\n', ' → ');
      if (column === 'nbytes') cell.className = 'number';
      row.append(cell);
    }
    return row;
  }

  /** Show everything about a row below the table. */
  choose(row) {
    if (!row) return;
    this.chosen = Number(row.dataset.row);
    const at = (column) => this.at(column, this.chosen);
    const facts = {
      Status: at('status'), Computation: at('how'), Source: at('source'), 'Source name': at('names'), Rules: at('rules'),
      'Target name': at('target'), Component: at('component'), Dtype: at('dtype'), Shape: at('shape'),
      Size: at('nbytes') ? `${at('nbytes').toLocaleString('en')} bytes` : '',
    };
    const shown = Object.entries(facts).filter(([, value]) => value);
    find('#details').replaceChildren(...shown.flatMap(([name, value]) => [element('dt', name), element('dd', value)]));
    find('#details').hidden = false;
    this.draw();
  }
}

function space(rows) {
  const made = element('tr');
  made.append(element('td', '', { class: 'space', colspan: COLUMNS.length, style: `height: ${rows * ROW}px` }));
  return made;
}

// ---- the picture ----

const MODULES = ['#4c7bd9', '#2f9e8f', '#8a63d2', '#c9772b', '#3f8fc4', '#6a994e', '#b05a9b', '#5b6ee1', '#a08325'];
const TONES = { rule: '#8f9bb0', quiet: '#b3a27a', bad: '#d93838' };
const LEAST = 0.004;   // of all bytes: what is drawn at least

/** A label for so many pixels: the name of the source stays, and the end of a name, in which names differ. */
function shortened(label, room) {
  const letters = Math.max(Math.floor(room / 6.6), 4);
  if (label.length <= letters) return label;
  const source = label.match(/^[^:]{1,16}: /)?.[0] ?? '';
  return `${source}…${label.slice(source.length + 1 - letters)}`;
}

function picture(flow, table) {
  const total = Math.max(flow.links.reduce((sum, link) => sum + link[2], 0), 1);
  const nodes = flow.nodes.map((node, number) => ({ ...node, number, nbytes: [0, 0], tensors: [0, 0] }));
  for (const [from, to, nbytes, tensors] of flow.links) {
    for (const [node, side] of [[nodes[from], 1], [nodes[to], 0]]) {
      node.nbytes[side] += nbytes;
      node.tensors[side] += tensors;
    }
  }
  const colours = new Map();
  const colour = (node) => {
    if (node.tone !== 'module') return TONES[node.tone];
    if (!colours.has(node.label)) colours.set(node.label, MODULES[colours.size % MODULES.length]);
    return colours.get(node.label);
  };
  const told = (nbytes, tensors) => `${size(nbytes)}, ${tensors.toLocaleString('en')} ${tensors === 1 ? 'tensor' : 'tensors'}`;
  const tip = ({ dataType, data }) => {
    const made = element('div', '', { class: 'tip' });
    const [heading, value] = dataType === 'edge'
      ? [`${nodes[data.from].label} → ${nodes[data.to].label}`, told(data.nbytes, data.tensors)]
      : [data.node.label, told(Math.max(...data.node.nbytes), Math.max(...data.node.tensors))];
    made.append(element('b', heading), element('br'), value);
    return made;
  };
  const place = find('#picture');
  const most = Math.max(...[0, 1, 2].map((column) => nodes.filter((node) => node.column === column).length));
  const chart = echarts.init(place, null, { renderer: 'svg' });
  const option = (width) => {
    const side = Math.min(Math.max(width * 0.24, 70), 300);
    return {
      animation: false,
      tooltip: { trigger: 'item', confine: true, formatter: tip },
      series: [{
        type: 'sankey',
        left: side, right: side, top: 8, bottom: 8, nodeWidth: 14, nodeGap: 12, draggable: false, layoutIterations: 64,
        emphasis: { focus: 'adjacency' },
        lineStyle: { color: 'source', opacity: 0.4, curveness: 0.5 },
        label: { formatter: ({ data }) => shortened(data.node.label, data.room), fontSize: 12 },
        data: nodes.map((node) => ({
          name: String(node.number), node, depth: node.column, room: node.column === 1 ? width / 2 - side - 30 : side - 14,
          itemStyle: { color: colour(node), borderWidth: 0 }, label: { position: node.column ? 'right' : 'left' },
        })),
        links: flow.links.map(([from, to, nbytes, tensors]) => ({
          source: String(from), target: String(to), value: Math.max(nbytes, total * LEAST), from, to, nbytes, tensors,
          lineStyle: nodes[from].tone === 'bad' || nodes[to].tone === 'bad' ? { color: TONES.bad, opacity: 0.55 }
            : nodes[from].tone === 'rule' ? { color: colour(nodes[to]) } : {},
        })),
      }],
    };
  };
  const fit = (width, height) => {
    place.style.height = `${height}px`;
    chart.resize({ width, height });
    chart.setOption(option(width));
  };
  const fill = () => fit(place.clientWidth, Math.max(most * 34 + 20, 160));
  fill();
  addEventListener('resize', fill);
  addEventListener('beforeprint', () => fit(1000, Math.max(most * 24, 160)));   // a page in landscape
  addEventListener('afterprint', fill);
  chart.on('click', ({ data }) => {
    const [column, value] = data.node?.filter ?? [];
    if (column) table.only(column, value);
  });
}

unpacked().then(({ columns, flow }) => {
  const table = new Table(columns);
  if (flow.nodes.length) picture(flow, table);
  else find('#flow').hidden = true;
  for (const link of document.querySelectorAll('a[data-rule]')) {
    link.addEventListener('click', (event) => {
      event.preventDefault();
      table.only('rules', link.dataset.rule);
    });
  }
  document.documentElement.dataset.ready = 'yes';
}).catch((error) => {
  for (const section of ['#flow', '#tensors']) find(section).append(element('p', `This browser can't show it: ${error}`));
  throw error;
});
