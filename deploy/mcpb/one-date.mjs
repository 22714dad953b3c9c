// Loaded before `mcpb pack`, which gives every file in the archive the time of packing: the earliest that a ZIP archive
// knows instead, so that the same files make the same bundle.
globalThis.Date = class extends Date {
  constructor(...given) {
    super(...(given.length ? given : ["1980-01-01T00:00:00"]));
  }
};
