/* ---- many images: a list asks a server for those that the page does not hold ------------------------------------------ */
// takes: data (report.js); library, factsOf, known (clusters.js); EACH_TIME (grid.js); post (change.js)

if (data.images?.step > 1) Object.assign(library, {
  async rows(clusters, order) {
    const {rows} = await post("list", {clusters, order}) ?? {rows: []};
    for (const row of rows) if (factsOf(row).cluster === undefined && clusters.length === 1) known.set(row, {cluster: clusters[0]});
    return rows;
  },
  async facts(rows) {
    const lacking = rows.filter(row => factsOf(row).path === undefined);
    for (let begin = 0; begin < lacking.length; begin += EACH_TIME) {
      const part = lacking.slice(begin, begin + EACH_TIME), facts = await post("facts", {rows: part});
      if (!facts) return false;
      part.forEach((row, k) => known.set(row, Object.fromEntries(Object.entries(facts).map(([name, values]) => [name, values[k]]))));
    }
    return lacking.length > 0;
  },
  alike: async rows => (await post("alike", {rows: rows.slice(0, EACH_TIME)}))?.rows ?? [],
});
