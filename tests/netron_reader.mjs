// Opens a file as Netron does, without its window: node netron_reader.mjs NETRON FILE
//
// NETRON holds the scripts of Netron's Python package. Its own search finds the format; what it would draw is printed
// as JSON: the format, and of its graph the inputs, the outputs, and each node's operator, whether the operator is one
// that Netron describes, and its parameters with shapes.
import { readFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [netron, file] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(join(netron, name)));
const base = await load('base.js');
const view = await load('view.js');

const stream = async (path) => new base.BinaryStream(new Uint8Array(await readFile(path)));
const host = {
    require: (id) => load(`${id}.js`),
    asset: (name) => readFile(join(netron, name), 'utf-8'),
    fetch: (name) => stream(join(dirname(file), name)),
    error: (error) => { throw error; },
    event: () => {},
};
const context = { ...host, identifier: basename(file), stream: await stream(file), entries: new Map() };
const model = await new view.ModelFactoryService(host).open(context);

if (model.format !== 'Caffe2') {
    throw new Error(`Netron takes ${file} for ${model.format}`);
}

const parameters = (node) => node.inputs
    .flatMap((input) => input.value)
    .filter((value) => value.initializer)
    .map((value) => [value.name, value.initializer.type.toString()]);
const [graph] = model.modules;
const nodes = graph.nodes.flatMap((node) => [node, ...node.chain]).map((node) => ({
    operator: node.type.name,
    known: Boolean(node.type.inputs),
    parameters: parameters(node),
}));
const names = (values) => values.map((value) => value.name);
process.stdout.write(JSON.stringify({
    format: model.format, inputs: names(graph.inputs), outputs: names(graph.outputs), nodes,
}));
