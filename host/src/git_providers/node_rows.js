// Writes rows as a Node frontend does: `node make.js > node_rows.json`. Key: SHA-256 of the text of ENCRYPTION_KEY.
const crypto = require("node:crypto");
const rows = [];
for (const [key, token] of [
  ["a key of the deployment's", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"],
  ["a key of the deployment's", "glpat-xxxxxxxxxxxxxxxxxxxx"],
  ["schlüssel 🔑", "github_pat_11ABCDEFG0_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"],
  ["k", "exactly-16-bytes"],
  ["k", "t"],
]) {
  const iv = crypto.randomBytes(16);
  const cipher = crypto.createCipheriv("aes-256-cbc", crypto.createHash("sha256").update(key).digest(), iv);
  const sealed = cipher.update(token, "utf8", "hex") + cipher.final("hex");
  rows.push({ key, token, iv: iv.toString("hex"), access_token_encrypted: sealed });
}
console.log(JSON.stringify(rows, null, 2));
