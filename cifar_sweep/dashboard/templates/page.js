// Runs before optuna-dashboard's own script, which asks at the root of its host: here all goes below the path that the
// page came from. And it says which opening of the database the page is of: optuna-dashboard fetches new trials alone,
// and would put those of another database behind the ones that it has. So the page is then loaded again.
{
  const script = new URL(document.currentScript.src);
  const below = script.pathname.replace(/\/static\/page\.js$/, "");
  const plain = window.fetch;
  window.below = below;
  window.fetch = async (place, options = {}) => {
    if (typeof place !== "string" || !place.startsWith("/")) return plain(place, options);
    const headers = { ...options.headers, "X-Opening": script.search.slice(1) };
    const answer = await plain(below + place, { ...options, headers });
    if (answer.status === 410) location.reload();
    return answer;
  };
  const settle = (event) => {
    const link = event.target.closest("a[href^='/csv/'], a[href^='/artifacts/']");
    if (link) link.setAttribute("href", below + link.getAttribute("href"));
  };
  document.addEventListener("click", settle, true);
}
