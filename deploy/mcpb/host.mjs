// Writes how Claude Desktop starts an unpacked bundle: host.mjs DIRECTORY ANSWERS. The answers are what a person has
// filled in, as JSON; the code that puts them into the manifest is mcpb's own, which Claude Desktop uses.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { getMcpConfigForManifest } from "@anthropic-ai/mcpb";

const [extensionPath, answers] = process.argv.slice(2);
const config = await getMcpConfigForManifest({
  manifest: JSON.parse(readFileSync(join(extensionPath, "manifest.json"), "utf8")),
  extensionPath,
  systemDirs: {},
  userConfig: JSON.parse(answers),
  pathSeparator: "/",
  logger: console,
});
process.stdout.write(JSON.stringify(config ?? null));
