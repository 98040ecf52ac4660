// Links to Airflow's own pages must open in the outer window: the console lives in a sandboxed iframe.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-airflow]");
  if (!link || window.parent === window) return;
  event.preventDefault();
  const outer = window.parent.document.createElement("a");
  outer.href = link.href;
  window.parent.document.body.append(outer);
  outer.click();
  outer.remove();
});
document.querySelector("select[data-submit]")?.addEventListener("change", (event) => event.target.form.submit());
