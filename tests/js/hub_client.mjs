// What a JavaScript user does with a Hub, printed as one JSON object.
// Usage: node hub_client.mjs ENDPOINT TOKEN REPO lfs|xet
import { createHash } from "node:crypto";
import {
  commit,
  createRepo,
  downloadFile,
  fileExists,
  listCommits,
  listFiles,
  modelInfo,
  repoExists,
  uploadFile,
  uploadFiles,
  whoAmI,
} from "@huggingface/hub";

const [hubUrl, accessToken, name, transfer] = process.argv.slice(2);
const repo = { type: "model", name };

// The client takes Xet only when the LFS batch endpoint offers it. The server does not, because a
// client that can do without is quicker so; here the offer is made on its behalf.
const offered = [];
async function offerXet(url, init) {
  offered.push(`${init?.method ?? "GET"} ${new URL(url).pathname}`);
  const response = await fetch(url, init);
  if (!String(url).endsWith("/info/lfs/objects/batch")) return response;
  const batch = await response.json();
  batch.transfer = "xet";
  for (const object of batch.objects) {
    if (object.actions) {
      object.actions = {
        upload: { href: `${hubUrl}/api/models/${name}/xet-write-token/main` },
      };
    }
  }
  return Response.json(batch);
}
const hub = { hubUrl, accessToken, repo, fetch: transfer === "xet" ? offerXet : fetch };

// Deterministic bytes: half of them noise, half of them 32-bit numbers that compress when grouped.
const weights = new Uint8Array(2_000_000);
for (let i = 0; i < 1_000_000; i += 32) {
  weights.set(createHash("sha256").update(`block ${i}`).digest(), i);
}
const view = new DataView(weights.buffer);
for (let i = 1_000_000; i < 2_000_000; i += 4) view.setFloat32(i, Math.sin(i), true);

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const download = async (path, revision) =>
  Buffer.from(await (await downloadFile({ ...hub, path, revision })).arrayBuffer());

const user = await whoAmI({ hubUrl, accessToken });
const created = await createRepo(hub);
const exists = await repoExists(hub);
const uploaded = await uploadFiles({
  ...hub,
  commitTitle: "Add two files",
  files: [
    { path: "config.json", content: new Blob(['{"hidden_size": 32}']) },
    { path: "sub folder/weights.safetensors", content: new Blob([weights]) },
  ],
});
await uploadFile({ ...hub, file: { path: "notes.txt", content: new Blob(["draft"]) } });
const files = [];
for await (const file of listFiles({ ...hub, recursive: true })) files.push(file);
const info = await modelInfo({ name, hubUrl, accessToken, additionalFields: ["sha", "tags"] });
const config = await download("config.json");
const downloaded = await download("sub folder/weights.safetensors");
const last = await commit({
  ...hub,
  title: "Delete and replace",
  parentCommit: info.sha,
  operations: [
    { operation: "delete", path: "notes.txt" },
    { operation: "addOrUpdate", path: "config.json", content: new Blob(["{}"]) },
  ],
});
const stale = await commit({
  ...hub,
  title: "Too late",
  parentCommit: info.sha,
  operations: [{ operation: "delete", path: "config.json" }],
}).then(
  () => null,
  (error) => error.statusCode,
);
const commits = [];
for await (const entry of listCommits(hub)) commits.push(entry.title);

console.log(
  JSON.stringify({
    user: user.name,
    created: created.repoUrl,
    exists,
    missing: await repoExists({ ...hub, repo: { type: "model", name: `${name}-none` } }),
    firstCommit: uploaded.commit.oid,
    files,
    info,
    config: config.toString(),
    weights: [sha256(weights), sha256(downloaded)],
    lastCommit: last.commit.oid,
    stale,
    commits,
    after: (await download("config.json")).toString(),
    before: (await download("config.json", uploaded.commit.oid)).toString(),
    notesExist: await fileExists({ ...hub, path: "notes.txt" }),
    configExists: await fileExists({ ...hub, path: "config.json" }),
    offered,
  }),
);
