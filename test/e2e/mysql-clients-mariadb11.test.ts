import { testClients } from './mysql-clients.ts';

testClients('mariadb11');
