export { JsonBytes, jsonObject } from '../core/json-bytes.ts';
