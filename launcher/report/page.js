const figures = JSON.parse(document.getElementById("figures").textContent);
const charts = figures.map((figure, index) => {
  const chart = document.getElementById(`chart-${index}`);
  Plotly.newPlot(chart, figure.data, figure.layout, {
    responsive: true,
    displayModeBar: false,
  });
  return chart;
});
document.querySelectorAll("input[data-run]").forEach((box) => {
  box.addEventListener("change", () => {
    charts.forEach((chart) => {
      const those = chart.data.map((_, at) => at).filter((at) => chart.data[at].meta === +box.dataset.run);
      if (those.length) Plotly.restyle(chart, { visible: box.checked }, those);
    });
  });
});
// Paper has a width of its own, which plotly does not hear of: see `@media print`.
const resize = (size) => charts.forEach((chart) => Plotly.relayout(chart, size));
window.addEventListener("beforeprint", () => resize({ width: 500 }));
window.addEventListener("afterprint", () => resize({ width: null, autosize: true }));
