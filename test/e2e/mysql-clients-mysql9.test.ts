import { testClients } from './mysql-clients.ts';

testClients('mysql9');
