// Issues a token, checks it, revokes it and checks it again. The contract is read from protos/ at run time; nothing is generated.
//
//   npm install
//   node check.mjs ACCOUNT PROJECT
//
// Asks the server at DOORWARD_ADDRESS. Issues and revokes with the operator's credential in DOORWARD_OPERATOR_FILE, checks with
// the caller's in DOORWARD_TOKEN_FILE: whoever guards an API needs no more than the second.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const protos = fileURLToPath(new URL("../../protos", import.meta.url));
const contract = protoLoader.loadSync(["doorward/v1/token_admin.proto", "doorward/v1/authorizer.proto"], {
  includeDirs: [protos, `${protos}/third_party`],
  keepCase: true, // names as the contract has them
  enums: String,
  longs: String,
  defaults: true,
});
const { TokenAdmin, Authorizer } = grpc.loadPackageDefinition(contract).doorward.v1;

const [account, project] = process.argv.slice(2);
if (!project) {
  console.error("usage: node check.mjs ACCOUNT PROJECT");
  process.exit(2);
}
const address = process.env.DOORWARD_ADDRESS ?? "127.0.0.1:50051";
const tokenAdmin = new TokenAdmin(address, grpc.credentials.createInsecure());
const authorizer = new Authorizer(address, grpc.credentials.createInsecure());
const operator = credential(process.env.DOORWARD_OPERATOR_FILE ?? "doorward-data/operator.token");
const caller = credential(process.env.DOORWARD_TOKEN_FILE ?? "doorward-data/caller.token");

function credential(file) {
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${readFileSync(file, "utf8").trim()}`);
  return metadata;
}

// One unary call with a deadline, as a promise. A denial is an answer; what is rejected is a call without one.
function ask(client, method, request, metadata, seconds) {
  const deadline = Date.now() + 1000 * seconds;
  return new Promise((resolve, reject) =>
    client[method](request, metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer))),
  );
}

async function show(secret) {
  const request = { secret, permission: "jobs:write", project_id: project };
  const { allowed, reason } = await ask(authorizer, "Check", request, caller, 2);
  console.log(allowed ? "allowed" : `denied: ${reason.replace("DENY_REASON_", "")}`);
}

const grants = [{ permission_set: "job_admin", project_ids: [project] }];
const { token, secret } = await ask(
  tokenAdmin,
  "IssueToken",
  { account_id: account, display_name: "from Node", grants },
  operator,
  30,
);
console.log(`issued ${token.token_id}`);
await show(secret);
const { token: revoked } = await ask(tokenAdmin, "RevokeToken", { token_id: token.token_id, reason: "the end" }, operator, 30);
console.log(`revoked: ${revoked.state.replace("TOKEN_STATE_", "")}`);
await show(secret);
