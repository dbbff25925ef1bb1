// What the page asks of the server. Paths are relative, so that the page works below any path of a proxy.

const TOKEN_KEY = "rtdetrv4-token";

export class Problem extends Error {
  constructor(what, code, retryAfter) {
    super(what);
    this.code = code;
    this.retryAfter = retryAfter; // seconds, if it is worth trying again
  }
}

/** The answer to a request; `askForToken` is called, and the request repeated, for as long as the token is wrong. */
async function ask(path, options, askForToken) {
  for (let isRepeated = false; ; isRepeated = true) {
    const token = sessionStorage.getItem(TOKEN_KEY);
    const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer.", "no_answer");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      sessionStorage.setItem(TOKEN_KEY, await askForToken(isRepeated || token !== null));
      continue;
    }
    const problem = await response.json().then((content) => content.error, () => null);
    const retryAfter = parseFloat(response.headers.get("Retry-After"));
    const what = problem ? sentence(problem) : `The server answers ${response.status}.`;
    throw new Problem(what, problem?.code ?? "unknown", retryAfter);
  }
}

function sentence({ what, expected }) {
  const text = what.charAt(0).toUpperCase() + what.slice(1);
  return expected ? `${text} (expected: ${expected}).` : `${text}.`;
}

export async function fetchModels(askForToken) {
  return (await ask("models", {}, askForToken)).json();
}

/** What is found in one image, whatever its confidence down to `conf`. */
export async function predict(blob, { model, conf, signal }, askForToken) {
  const query = new URLSearchParams({ model, conf });
  const headers = { "Content-Type": blob.type || "application/octet-stream" };
  const options = { method: "POST", body: blob, headers, signal };
  const answer = await (await ask(`predict?${query}`, options, askForToken)).json();
  return { ...answer.images[0], total_ms: answer.total_ms };
}
