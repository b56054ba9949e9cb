/** Found anywhere in a key, since people run them together (`userpasswordhash`). */
const TELLING_PARTS = [
  "password",
  "passwd",
  "passphrase",
  "passcode",
  "secret",
  "token",
  "credential",
  "apikey",
  "privatekey",
];

/** Found as a whole word or at a word's edge only: `otp` is in `footprint`, `pin` in `shipping`. */
const TELLING_WORDS = ["hash", "otp", "totp", "hotp", "mfa", "pin", "pwd", "salt", "cvv", "cookie"];

/** Whether a custom attribute's key names something that must never travel, however it is spelt. */
export function looksSecret(key: string): boolean {
  const words = key
    .replace(/([a-z0-9])([A-Z])/g, "$1 $2")
    .toLowerCase()
    .split(/[^a-z]+/)
    .filter((word) => word !== "");
  const joined = words.join("");
  if (TELLING_PARTS.some((part) => joined.includes(part))) return true;
  if (joined.includes("recoverycode") || joined.includes("backupcode")) return true;
  return words.some(
    (word) => TELLING_WORDS.includes(word) || word.startsWith("otp") || word.endsWith("otp") || word.endsWith("hash"),
  );
}
