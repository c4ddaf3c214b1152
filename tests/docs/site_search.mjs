// Asks the search of the built site: node site_search.mjs WORKER INDEX < QUERIES.
// WORKER is the theme's own program, which a browser runs in a web worker. QUERIES is a JSON list.
// Writes a JSON object: query -> pages, best first.
import {readFileSync} from "node:fs";
import vm from "node:vm";

const [, , worker, index] = process.argv;
const read = name => readFileSync(name, "utf8");
const answers = [];
let answer;
const context = vm.createContext({
  console,
  addEventListener: (_, listener) => { answer = listener; },
  postMessage: message => answers.push(message),
});
context.self = context;
vm.runInContext(read(worker), context);

const [setup, query] = [0, 2];
const {config, docs} = JSON.parse(read(index));
await answer({data: {type: setup, data: {config, docs, options: {suggest: false}}}});
const found = {};
for (const words of JSON.parse(read(0))) {
  await answer({data: {type: query, data: words}});
  found[words] = answers.pop().data.items.map(([first]) => first.location.split("#")[0]);
}
console.log(JSON.stringify(found));
