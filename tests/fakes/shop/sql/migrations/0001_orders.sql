CREATE TABLE shop.orders (id bigint PRIMARY KEY);
INSERT INTO shop.orders VALUES (1);
