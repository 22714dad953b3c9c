// Drives the server with a TypeScript SDK: node client.mjs v1|v2 COMMAND ARGUMENT...
// Exits non-zero with the first thing that is not as it should be.
import assert from "node:assert/strict";

const [generation, command, ...args] = process.argv.slice(2);
const v2 = generation === "v2";
const from = v2
  ? { client: "@modelcontextprotocol/client", stdio: "@modelcontextprotocol/client/stdio" }
  : { client: "@modelcontextprotocol/sdk/client/index.js", stdio: "@modelcontextprotocol/sdk/client/stdio.js" };
const { Client } = await import(from.client);
const { StdioClientTransport } = await import(from.stdio);

const client = new Client({ name: "judge", version: "1" }, v2 ? { versionNegotiation: { mode: "auto" } } : {});
await client.connect(new StdioClientTransport({ command, args, env: process.env }));

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

const { structuredContent: subscription } = await call("mqtt_subscribe", { topic_filter: "judge/#" });
const { structuredContent: published } = await call("mqtt_publish", { topic: "judge/a", payload: '{"n": 1}' });
assert.equal(published.acknowledged, true);
const { structuredContent: waited } = await call("mqtt_wait", { topic_filter: "judge/#", timeout_s: 0.2 });
assert.equal(waited.matched, false);
const { structuredContent: read } = await call("mqtt_messages", { subscription_id: subscription.subscription_id });
assert.deepEqual(read.messages.map((message) => [message.topic, message.payload]), [["judge/a", { n: 1 }]]);

const refused = await call("mqtt_publish", { topic: "judge/+", payload: "" });
assert.equal(refused.isError, true);
assert.match(refused.content[0].text, /wildcard/);

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
