// Drives the server with a TypeScript SDK: node client.mjs v1|v2 COMMAND ARGUMENT... over stdio, or
// node client.mjs v1|v2 URL over HTTP with the token in TOKEN. The server has CONFIRM=overwrite.
// Exits non-zero with the first thing that is not as it should be.
import assert from "node:assert/strict";

const [generation, target, ...args] = process.argv.slice(2);
const v2 = generation === "v2";
const overHTTP = target.startsWith("http://");

const { Client, Transport, elicitation } = v2 ? await secondSDK() : await firstSDK();

async function firstSDK() {
  const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
  const { StdioClientTransport } = await import("@modelcontextprotocol/sdk/client/stdio.js");
  const { StreamableHTTPClientTransport } = await import("@modelcontextprotocol/sdk/client/streamableHttp.js");
  const { ElicitRequestSchema } = await import("@modelcontextprotocol/sdk/types.js");
  return { Client, Transport: overHTTP ? StreamableHTTPClientTransport : StdioClientTransport, elicitation: ElicitRequestSchema };
}

async function secondSDK() {
  const { Client, StreamableHTTPClientTransport } = await import("@modelcontextprotocol/client");
  const { StdioClientTransport } = await import("@modelcontextprotocol/client/stdio");
  return { Client, Transport: overHTTP ? StreamableHTTPClientTransport : StdioClientTransport, elicitation: "elicitation/create" };
}

const topic = `judge/${process.pid}`;

const transport = (token) =>
  overHTTP
    ? new Transport(new URL(target), { requestInit: { headers: { Authorization: `Bearer ${token}` } } })
    : new Transport({ command: target, args, env: process.env });

const make = () =>
  new Client(
    { name: "judge", version: "1" },
    { capabilities: { elicitation: { form: {} } }, ...(v2 ? { versionNegotiation: { mode: "auto" } } : {}) },
  );

if (overHTTP) {
  const refused = await make()
    .connect(transport(`wrong-${process.env.TOKEN}`))
    .then(() => assert.fail("a wrong token is let in"), (error) => error);
  assert.ok(refused.code === 401 || refused.status === 401 || refused.name === "UnauthorizedError", `not a 401: ${refused}`);
}

const client = make();
let asked = 0;
let allow = false;
client.setRequestHandler(elicitation, async (request) => {
  assert.match(request.params.message, /kept/);
  asked++;
  return { action: "accept", content: { allow } };
});
await client.connect(transport(process.env.TOKEN));

const call = (name, input, options) =>
  v2 ? client.callTool({ name, arguments: input }, options) : client.callTool({ name, arguments: input }, undefined, options);

const { tools } = await client.listTools();
assert.ok(tools.length >= 9, "the tools are listed");
assert.ok(tools.every((tool) => tool.inputSchema && tool.outputSchema && tool.annotations), "each with its schemas");

let status;
for (let attempt = 0; attempt < 50 && !status?.structuredContent.connection.connected; attempt++) {
  status = await call("server_status", {});
}
assert.ok(status.structuredContent.connection.connected, "connected to the broker");
assert.equal(status.structuredContent.server.transport, overHTTP ? "http" : "stdio");

const { structuredContent: subscription } = await call("mqtt_subscribe", { topic_filter: `${topic}/#` });
const { structuredContent: published } = await call("mqtt_publish", { topic: `${topic}/a`, payload: '{"n": 1}' });
assert.equal(published.acknowledged, true);
const { structuredContent: waited } = await call("mqtt_wait", { topic_filter: `${topic}/#`, timeout_s: 0.2 });
assert.equal(waited.matched, false);
const { structuredContent: read } = await call("mqtt_messages", { subscription_id: subscription.subscription_id });
assert.deepEqual(read.messages.map((message) => [message.topic, message.payload]), [[`${topic}/a`, { n: 1 }]]);

const refused = await call("mqtt_publish", { topic: "judge/+", payload: "" });
assert.equal(refused.isError, true);
assert.match(refused.content[0].text, /wildcard/);

const keep = (payload) => call("mqtt_publish", { topic: `${topic}/kept`, payload, retain: true });
assert.equal((await keep("1")).structuredContent.acknowledged, true);
assert.equal(asked, 0, "nothing is overwritten yet");
assert.equal((await keep("2")).isError, true, "the person said no");
allow = true;
assert.equal((await keep("2")).structuredContent.acknowledged, true);
assert.equal(asked, 2, "the person is asked each time");

let progressed = 0;
await call("mqtt_wait", { topic_filter: "silent", timeout_s: 2.5 }, { onprogress: () => progressed++ });
assert.ok(progressed >= 2, "progress is reported");

const abort = new AbortController();
const cancelled = call("mqtt_wait", { topic_filter: "silent" }, { signal: abort.signal });
setTimeout(() => abort.abort(), 100);
await assert.rejects(cancelled);
await call("server_status", {}); // and it goes on

await client.close();
console.log(`TypeScript SDK ${generation}: OK`);
process.exit(0);
